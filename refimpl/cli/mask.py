"""`refimpl mask`: which token may look at which."""

from __future__ import annotations

import argparse
import sys

from refimpl.cli import common, terminal
from refimpl.errors import InputError


def parser(prog: str) -> common.Parser:
    examples = (
        f'{prog} "吾輩は猫である。"',
        f'{prog} "吾輩は猫である。" "猫" --padding-side left',
        f'{prog} "名前はまだ無い。" --past 5',
        f'{prog} "吾輩は猫である。" --save mask.html',
    )
    made = common.Parser(prog, examples, "Show which token may look at which; several texts are padded.")
    made.add_argument("text", nargs="*", metavar="TEXT", help='the texts; "-" or nothing: standard input')
    made.add_argument("-f", "--file", metavar="PATH", help="read the text from a UTF-8 file")
    made.add_argument(
        "--past", type=_count, default=0, metavar="N", help="so many tokens are in a cache already"
    )
    made.add_argument("--padding-side", choices=("left", "right"), help="where short texts are padded")
    made.add_argument("--save", metavar="PATH", help="write a picture instead: .svg, or .html as a page")
    common.add_model_options(made)
    made.add_argument("-q", "--quiet", action="store_true", help="no summary, only errors and warnings")
    return made


def run(args: argparse.Namespace) -> int:
    if len(args.text) > 1:
        if args.file is not None:
            raise InputError("give the text as an argument or with --file, not both")
        texts = [common.check_argument(text, f"text {number}") for number, text in enumerate(args.text, 1)]
    else:
        texts = [common.read_text(args.text[0] if args.text else None, args.file, "text")]

    from refimpl.attention_visualizer.view import check_picture_name
    from refimpl.attention_visualizer.visualizer import AttentionMaskVisualizer, is_colourful

    if args.save is not None:
        check_picture_name(args.save)
    terminal.show_log_messages()
    visualizer = AttentionMaskVisualizer(common.model_name(args.model), **common.hub_options(args))
    view = visualizer.view(texts, past=args.past, padding_side=args.padding_side)
    if args.save is not None:
        terminal.write(f"{view.save(args.save)}\n")
    elif is_colourful():
        sys.stdout.write(view.text(color=True, encoding=sys.stdout.encoding or "utf-8"))
        sys.stdout.flush()
    else:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        terminal.write(view.text(encoding=encoding))
    if not args.quiet:
        terminal.note(f"{int(view.visible.sum()):,} of {view.visible.size:,} pairs are visible")
    return 0


def _count(text: str) -> int:
    """A whole number for argparse, which reports the ValueError itself."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number
