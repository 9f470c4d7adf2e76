"""What `refimpl perplexity` shows."""

from __future__ import annotations

import argparse
import math
from typing import Any

from refimpl.cli import terminal

#: JSON name of what is compared -> its text
_COMPARED = {
    "perplexity": "perplexity",
    "base_perplexity": "perplexity of the base",
    "ln_perplexity_ratio": "mean ln(perplexity / base)",
    "perplexity_ratio": "perplexity / base",
    "perplexity_difference": "perplexity - base",
}


def as_json(run: Any, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is known of a run, as JSON values."""
    plan, losses = run.plan, run.losses
    mean, perplexity = losses.mean, losses.perplexity
    # Nats for each token of the text, in bits; the tokens that are not scored count like the others.
    bits = mean.value * len(plan.ids) / math.log(2)
    report = {
        "model": name,
        "backend": run.model.backend.name,
        "dtype": str(run.model.dtype),
        "weight_dtype": args.weight_dtype,
        "matmul_dtype": run.model.backend.matmul_dtype,
        "method": "chunks" if plan.stride is None else "stride",
        "context": plan.context,
        "stride": plan.stride,
        "windows": run.windows_read,
        "tokens": len(plan.ids),
        "characters": plan.characters,
        "bytes": plan.bytes,
        "scored": len(losses),
        "perplexity": _finite(perplexity.value),
        "standard_error": _finite(perplexity.standard_error),
        "nll": mean.value,
        "nll_standard_error": mean.standard_error,
        "bits_per_byte": bits / plan.bytes if plan.bytes else None,
        "bits_per_character": bits / plan.characters if plan.characters else None,
        "seconds": round(run.seconds, 3),
        "tokens_per_second": round(run.tokens_read / run.seconds, 2) if run.seconds else None,
        "interrupted": run.interrupted,
    }
    if args.kl_base is not None:
        report["kl_base"] = args.kl_base
    if run.parts:
        from refimpl.evaluation.divergence import Divergence

        base = {
            key: plan.base.metadata.get(key)
            for key in ("model", "backend", "dtype", "weight_dtype", "matmul_dtype")
        }
        report["kl_divergence"] = {"base": base, **Divergence.joined(run.parts).report()}
    return report


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None


def as_text(report: dict[str, Any]) -> str:
    """The values of one run, aligned."""
    value, error = report["perplexity"], report["standard_error"]
    rows = [["perplexity", "beyond what a float holds" if value is None else _with_error(value, error)]]
    for key, label in (("bits_per_byte", "bits per byte"), ("bits_per_character", "bits per character")):
        if report[key] is not None:
            rows.append([label, f"{report[key]:.4f}"])
    rows.append(["scored", f"{report['scored']} of {report['tokens']} tokens"])
    return terminal.table(rows)


def summary(report: dict[str, Any]) -> str:
    """How it was read, and how quickly."""
    pieces = f"{report['windows']} piece{'' if report['windows'] == 1 else 's'} of {report['context']} tokens"
    how = pieces if report["stride"] is None else f"{pieces}, stride {report['stride']}"
    speed = report["tokens_per_second"]
    interrupted = ", interrupted" if report["interrupted"] else ""
    return f"{how}, {report['seconds']:.1f} s" + (f", {speed:.1f} tokens/s" if speed else "") + interrupted


def divergence_text(found: dict[str, Any]) -> str:
    """The comparison with the base, aligned."""
    rows = [[label, _with_error(**found[key])] for key, label in _COMPARED.items()]
    if found["correlation"] is not None:
        rows.append(["correlation of ln(perplexity)", f"{found['correlation']:.4%}"])
    rows.append(["", ""])
    rows += _spread("KL divergence", found["kl_divergence"], lambda value: f"{value:.6f}")
    rows.append(["", ""])
    rows += _spread("delta p", found["delta_p"], lambda value: f"{value:.3%}")
    rows.append(["delta p, root mean square", _with_error(**found["rms_delta_p"], percent=True)])
    rows.append(["same top token", _with_error(**found["same_top"], percent=True)])
    return terminal.table(rows)


def _spread(name: str, found: dict[str, Any], show: Any) -> list[list[str]]:
    """Mean, extremes and percentiles of one quantity."""
    error = found["standard_error"]
    mean = show(found["mean"]) + ("" if error is None else f" ± {show(error)}")
    rows = [[f"{name}, mean", mean]]
    for key, value in found.items():
        if key not in ("mean", "standard_error"):
            rows.append([f"{name}, {key}", show(value)])
    return rows


def _with_error(mean: float, standard_error: float | None, percent: bool = False) -> str:
    def show(value: float) -> str:
        return f"{value:.3%}" if percent else f"{value:.4f}"

    return show(mean) + ("" if standard_error is None else f" ± {show(standard_error)}")
