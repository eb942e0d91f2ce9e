"""How a lack of memory is recognised, on any device, and what is advised where two models share one."""

import pytest

from pytest_infer.ab import protocol
from pytest_infer.ab.child_process import ChildProcess
from pytest_infer.errors import AgainstError
from pytest_infer.pytest_face.failures import out_of_memory


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("XPU out of memory. Tried to allocate 4.00 GiB", True),
        ("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", True),
        ("MPS backend out of memory (MPS allocated: 8.00 GB)", True),
        ("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", False),
    ],
)
def test_of_every_device(text, told):
    assert out_of_memory(RuntimeError(text)) is told


@pytest.mark.parametrize(
    ("why", "advised"), [("failed in setup: m: cannot be loaded: CUDA out of memory. Tried", True), ("failed", False)]
)
def test_two_models_that_do_not_fit_one_device(monkeypatch, why, advised):
    child = object.__new__(ChildProcess)
    child._name = "main"
    monkeypatch.setattr(child, "_receive", lambda: protocol.Ended(nodeid="test_a", why=why), raising=False)
    with pytest.raises(AgainstError) as caught:
        child.begun()
    assert ("add --infer-against-sequential" in str(caught.value)) is advised
    assert "\n" not in str(caught.value)
