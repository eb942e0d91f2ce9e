"""Which variables change the speed of code, and what is kept of them."""

import pytest

from pytest_infer.measure.machine import environment


@pytest.mark.parametrize(
    "name",
    [
        *("OMP_NUM_THREADS", "KMP_BLOCKTIME", "GOMP_SPINCOUNT", "MKL_ENABLE_INSTRUCTIONS", "TORCH_COMPILE_DISABLE"),
        *("MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "OPENBLAS_CORETYPE", "PYTHONMALLOC", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_variable_that_changes_speed(name):
    assert environment.relevant({name: "1", "HOME": "/home/somebody"}) == {name: "1"}


@pytest.mark.parametrize("name", ["TORCH_HOME", "TORCHINDUCTOR_CACHE_DIR", "TORCH_LOGS", "PATH", "HF_TOKEN", "XOMP_X"])
def test_a_variable_that_does_not(name):
    assert environment.relevant({name: "1"}) == {}


def test_of_a_preloaded_library_only_the_name_is_kept():
    assert environment.relevant({"LD_PRELOAD": "/home/me/libjemalloc.so:/opt/b.so c.so"}) == {
        "LD_PRELOAD": "libjemalloc.so b.so c.so"
    }


@pytest.mark.parametrize(
    ("text", "mode"), [("always [madvise] never\n", "madvise"), ("nothing", None), (None, None), ("\xff", None)]
)
def test_huge_pages(tmp_path, text, mode):
    folder = tmp_path / "kernel/mm/transparent_hugepage"
    folder.mkdir(parents=True)
    if text is not None:
        folder.joinpath("enabled").write_text(text, encoding="latin-1")
    assert environment.huge_pages(tmp_path) == mode
