"""What K points of a chunk cost, against decoding all of it: `python -m benchmarks.crossovers [WORD …]`.

Prints, for every encoding, microseconds of CPU a chunk and the ratio points / (the usual package's full decode +
indexing), the two measured by turns and their labels compared. Words choose cases by their names. `--shape` is of the
chunk. Raw chunks by byte ranges have a program of their own, `python -m benchmarks.crossovers.ranges`.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.crossovers import arrays, floats, pictures, segmentation

NUMBERS = (1, 10, 30, 100, 1_000, 10_000)
WIDTH = 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--shape", default="128,128,64", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--seconds", default=0.5, type=float, help="a number of points and case, at least")
    options = parser.parse_args()
    print(f"{' x '.join(map(str, options.shape))}; microseconds a chunk, and the ratio to the full decode")
    print(f"{'':{WIDTH}}{'full':>10}" + "".join(f"{f'K={number}':>18}" for number in NUMBERS))
    for module in (segmentation, pictures, floats, arrays):
        for case in module.list_cases(options.shape):
            if options.words and not any(word in case.name for word in options.words):
                continue
            spent = [case.measure(number, options.seconds) for number in NUMBERS]
            full = [times.pop("full decode") for times in spent]
            for name in spent[0]:
                label = name if name == case.name else f"  {name}"
                cells = [f"{times[name]:10.0f} {times[name] / whole:6.3f}x"
                         for times, whole in zip(spent, full, strict=True)]
                print(f"{label:{WIDTH}}{min(full):10.0f}" + "".join(cells), flush=True)
            print(f"{'  encoded':{WIDTH}}{len(case.payload):10} bytes{', ' if case.remark else ''}{case.remark}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
