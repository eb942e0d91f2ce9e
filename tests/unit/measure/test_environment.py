"""Which variables change the speed of code, and what is kept of them."""

import sys
from types import SimpleNamespace

import pytest

from pytest_infer.measure.machine import environment


@pytest.mark.parametrize(
    "name",
    [
        *("OMP_NUM_THREADS", "KMP_BLOCKTIME", "GOMP_SPINCOUNT", "MKL_ENABLE_INSTRUCTIONS", "TORCH_COMPILE_DISABLE"),
        *("MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "OPENBLAS_CORETYPE", "PYTHONMALLOC", "CUDA_VISIBLE_DEVICES"),
        *("MALLOC_CONF", "_RJEM_MALLOC_CONF", "JE_MALLOC_CONF", "MIMALLOC_LARGE_OS_PAGES", "TCMALLOC_RELEASE_RATE"),
        *("VECLIB_MAXIMUM_THREADS", "MKLDNN_VERBOSE", "GOTO_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "RAYON_NUM_THREADS"),
        *("TOKENIZERS_PARALLELISM", "PYTHONTRACEMALLOC", "PYTHONPERFSUPPORT", "PYTHONDEVMODE", "ROCR_VISIBLE_DEVICES"),
    ],
)
def test_a_variable_that_changes_speed(name):
    assert environment.relevant({name: "1", "HOME": "/home/somebody"}) == {name: "1"}


@pytest.mark.parametrize(
    "name",
    [
        "TORCH_HOME",
        "TORCHINDUCTOR_CACHE_DIR",
        "TORCH_LOGS",
        "PATH",
        "HF_TOKEN",
        "XOMP_X",
        "NVIDIA_VISIBLE_DEVICES",
        "PYTHONPATH",
    ],
)
def test_a_variable_that_does_not(name):
    assert environment.relevant({name: "1"}) == {}


def test_of_a_preloaded_library_only_the_name_is_kept():
    assert environment.relevant({"LD_PRELOAD": "/home/me/libjemalloc.so:/opt/b.so c.so"}) == {
        "LD_PRELOAD": "libjemalloc.so b.so c.so"
    }


def test_no_folder_is_kept():
    given = {
        "DYLD_INSERT_LIBRARIES": "/Users/me/lib/libmimalloc.dylib",
        "MALLOC_CONF": "prof:true,prof_prefix:/home/me/secret/jeprof",
        "OMP_TOOL_LIBRARIES": "/opt/a/x.so:/opt/b/y.so",
        "OMP_PLACES": "{0:4},{4:4}",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.tcache_count=0",
    }
    assert environment.relevant(given) == {
        "DYLD_INSERT_LIBRARIES": "libmimalloc.dylib",
        "GLIBC_TUNABLES": given["GLIBC_TUNABLES"],
        "MALLOC_CONF": "prof:true,prof_prefix:jeprof",
        "OMP_PLACES": "{0:4},{4:4}",
        "OMP_TOOL_LIBRARIES": "x.so:y.so",
    }


@pytest.mark.parametrize(
    ("text", "kept"),
    [("/opt/lib/libjemalloc.so.2\n/usr/lib/b.so\n", "libjemalloc.so.2 b.so"), ("\n", None), (None, None)],
)
def test_what_the_linker_loads_everywhere(tmp_path, text, kept):
    if text is not None:
        tmp_path.joinpath("ld.so.preload").write_text(text, encoding="utf-8")
    assert environment.preloaded(tmp_path) == ({} if kept is None else {"ld.so.preload": kept})


@pytest.mark.parametrize(
    ("text", "mode"), [("always [madvise] never\n", "madvise"), ("nothing", None), (None, None), ("\xff", None)]
)
def test_huge_pages(tmp_path, text, mode):
    folder = tmp_path / "kernel/mm/transparent_hugepage"
    folder.mkdir(parents=True)
    if text is not None:
        folder.joinpath("enabled").write_text(text, encoding="latin-1")
    assert environment.huge_pages(tmp_path) == mode


@pytest.mark.parametrize(
    "name",
    ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_ALLOC_CONF", "CUDNN_CONV_WSCAP_DBG",
     "CUDA_DEVICE_MAX_CONNECTIONS", "CUBLASLT_WORKSPACE_SIZE", "DISABLE_ADDMM_CUDA_LT", "MIOPEN_FIND_MODE"],
)  # fmt: skip
def test_variables_of_an_accelerators_libraries_count(name):
    assert environment.relevant({name: "1"}) == {name: "1"}


def test_what_a_program_set_in_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert environment.of_torch() == {}
    torch = SimpleNamespace(
        get_float32_matmul_precision=lambda: "highest",
        are_deterministic_algorithms_enabled=lambda: False,
        backends=SimpleNamespace(cudnn=SimpleNamespace(benchmark=False)),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert environment.of_torch() == {}
    torch.get_float32_matmul_precision = lambda: "high"
    del torch.backends
    assert environment.of_torch() == {"torch.float32_matmul_precision": "high"}
