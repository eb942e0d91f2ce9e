"""The model as it was loaded, and the work of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_infer.records.loading import Loading


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleWork:
    """One role's part of the work: of `Work.read_bytes`, and of `Work.parameters` or, the head's, `head_parameters`.

    `parameter_bytes` are the stored bytes of its weights: more than it reads where a table is looked up.
    """

    read_bytes: int
    parameters: int | None = None
    parameter_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one forward pass reads and multiplies, counted from the loaded modules.

    `read_bytes` are the stored bytes of all weights, shared ones once; of a table that is only looked up (an embedding
    that is not the output head too) one row. `parameters` are the weights that each token is multiplied with if it
    went through every expert, without the output head; None where they are packed so that their number is unknown.
    `head_parameters` are those of the output head, which a prefill needs for its last position only.
    `expert_parameters` are those of each experts module, by its qualified name; empty for a dense model.

    Attention multiplies `pair_flops` for each pair of positions (query, key) in all layers that see the whole text
    together, and `window_pair_flops` in those that see the last `window` positions only, or where `chunked` those of
    their own chunk of `window` positions; None where it is unknown.

    `roles` are the parts of it by role (see `Role`), which add up to the whole; empty where an engine does not tell.
    """

    read_bytes: int
    parameters: int | None = None
    head_parameters: int
    expert_parameters: dict[str, int]
    pair_flops: int | None = None
    window_pair_flops: int = 0
    window: int | None = None
    chunked: bool = False
    roles: dict[str, RoleWork] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What an engine loaded. Bytes are those of the tensors, shared ones counted once.

    `device` names all devices that hold weights, commas between them, accelerators first ("meta": those that accelerate
    keeps elsewhere until they run). `load_s` runs from the call to a usable model, of a server from its start, and
    `load_read_bytes` came from the disk meanwhile (0: a warm page cache, or weights that are mapped and not touched
    yet); `load` holds the rest. All three are None for a model that the run did not load itself. `weights_sha256` is
    over the names and bytes of the files. Of a model that is spread over several processes all counts are those of this
    process's part; `uncounted` is why its weights could not be counted. `engine_args` are the engine's own arguments,
    as they were given. `remote_code` is the module of the model's class where that came with the model, None where it
    is installed.
    """

    name: str
    engine: str
    architecture: str | None = None
    source: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    parameters: int | None = None
    parameter_bytes: int | None = None
    buffer_bytes: int | None = None
    context_length: int | None = None
    vocabulary: int | None = None
    attention: str | None = None
    experts_implementation: str | None = None
    threads: int | None = None
    load_s: float | None = None
    load_read_bytes: int | None = None
    load: Loading | None = None
    weights_sha256: str | None = None
    work: Work | None = None
    uncounted: str | None = None
    quantization: str | None = None
    engine_args: str | None = None
    remote_code: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    generation: dict[str, str | int | float | bool | None] = field(default_factory=dict)

    @property
    def split(self) -> bool:
        """Return whether the weights lie on several devices, or elsewhere than where they are used (offloaded)."""
        return "," in (self.device or "") or self.device == "meta"
