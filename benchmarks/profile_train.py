"""Where an update's time goes, by operator: torch.profiler around updates of bench_train's variants.

    python benchmarks/profile_train.py --out results/ [--batch 8] [--variants default together] [--width 64]

Writes one table (profile-<variant>.txt) and one trace for chrome://tracing or Perfetto (profile-<variant>.json.gz) each. Not
for timings: the profiler takes time itself.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_train import VARIANTS, configure, prepare_update


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--width", type=int, default=64, help="base channels of both networks")
    parser.add_argument("--image-size", type=int, nargs="+", default=[240], help="side, or rows and columns")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["default"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.variants:
        update, device = prepare_update(configure(options, VARIANTS[name][1], options.batch))
        for _ in range(2):
            update(options.batch)
        cuda = device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=activities) as profiler:
            update(options.batch)
            if cuda:
                torch.cuda.synchronize()
        order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
        text = profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=60)
        (options.out / f"profile-{name}.txt").write_text(text)
        profiler.export_chrome_trace(str(options.out / f"profile-{name}.json.gz"))
        print(f"{name}\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
