"""Stands for `brasyn`, `python`, `accelerate` and `torchrun` in documented commands: the same at reduced size.

The words of the document are kept. Options are added (narrow networks, few updates, small phantoms), and numbers
of processes become 2.
"""

import itertools
import os
import re
import sys

from brasyn_dist.common.resources import find_resource
from brasyn_dist.config import Config, RunConfig, load_config

SIZE = ["generator.image_size=48", "discriminator.image_size=48"]
GENERATOR = [
    *SIZE, "generator.base_channels=8", "generator.heads=2", "generator.transformer_layers=1",
    "discriminator.base_channels=8",
]  # fmt: skip
UNET = [
    *SIZE, "generator.widths=[16,32]", "generator.full_channels=16", "generator.condition=16", "augmentation.crop=null",
]  # fmt: skip
RUN = [
    "training.global_batch_size=4",
    "training.max_steps=4",
    "validation.slices=2",
    "validation.every_steps=4",
    "optimizer.warmup_steps=1",
    "runtime.threads=1",
]
SEGMENTER = ["segmenter.image_size=48", "segmenter.widths=[8,16]"]
SMALL_CASES = ["--minimum-foreground", "200"]
MORE = {
    "phantom": ["--shape", "48", "48", "40"],
    "shard": [*SMALL_CASES, "--validation-fraction", "0.34"],
    "cross-validate": [*SMALL_CASES, *UNET, *RUN],
}
NUMBER_OF = re.compile(r"--(workers|num_processes|nproc_per_node|folds)")


def reduced(words: list[str]) -> list[str]:
    """Command line of the reduced command. `words` begin with the name of the program."""
    words = [
        "2" if i and word.isdigit() and NUMBER_OF.fullmatch(words[i - 1]) else word
        for i, word in enumerate(words)
    ]
    name = subcommand(words)
    more = network(words) + RUN if name == "train" else MORE.get(name, [])
    program, *arguments = words
    if program == "accelerate":
        arguments[1:1] = ["--main_process_port", "0"]
    if program == "torchrun":
        arguments[:0] = ["--standalone"]
    start = {
        "brasyn": ["-m", "brasyn_dist"],
        "accelerate": ["-m", "accelerate.commands.accelerate_cli"],
        "torchrun": ["-m", "torch.distributed.run"],
    }
    return [sys.executable, *start.get(program, []), *arguments, *more]


def network(words: list[str]) -> list[str]:
    """Options of a small network of the kind that the run's configuration has."""
    file = words[words.index("--config") + 1]
    config = load_config(find_resource("configs", file), (), RunConfig)
    if not isinstance(config, Config):
        return SEGMENTER
    return UNET if config.generator.kind == "unet" else GENERATOR


def subcommand(words: list[str]) -> str:
    """Subcommand of `brasyn` that the words call, or an empty text."""
    if words[0] == "brasyn":
        return words[1]
    modules = [after for word, after in itertools.pairwise(words) if word == "-m"]
    return modules[0].removeprefix("brasyn_dist.").replace("_", "-") if modules else ""


if __name__ == "__main__":
    command = reduced(sys.argv[1:])
    os.execv(command[0], command)
