"""`refimpl bench model --matmul-dtype`: each rounding of products is a measurement of its own."""

from __future__ import annotations

from tests.cli.test_bench_model import bench, record, small
from tests.cli.test_main import error_of

__all__ = ["bench", "small"]  # fixtures


def test_roundings_are_measured_one_by_one(bench):
    arguments = ("--shape", "tiny", "--backend", "numba", "-p", "20", "-n", "0", "-r", "1")
    value = record(bench(*arguments, "--matmul-dtype", "float32,bfloat16", "--json"))
    assert [one["matmul_dtype"] for one in value["results"]] == ["float32", "bfloat16"]
    assert [one["ours"]["matmul_dtype"] for one in value["results"]] == [None, "bfloat16"]
    assert "products in bfloat16" in value["results"][1]["ours"]["what"]
    table = bench(*arguments, "--matmul-dtype", "bfloat16").stdout.decode()
    assert "tiny float32, products bfloat16" in table


def test_without_the_option_nothing_is_rounded(bench):
    (one,) = record(bench("--shape", "tiny", "-p", "0", "-r", "1", "--json"))["results"]
    assert (one["matmul_dtype"], one["ours"]["matmul_dtype"]) == (None, None)


def test_what_is_refused(bench):
    wrong = error_of(bench("--shape", "tiny", "--matmul-dtype", "bfloat16,float8"), 2)
    assert "--matmul-dtype has an unknown name; found 'float8'; allowed: float32, bfloat16, " in wrong
    wrong = error_of(bench("--shape", "tiny", "--matmul-dtype", "bfloat16"), 2)
    assert "the numpy backend does not round the factors of matrix products to this dtype" in wrong
