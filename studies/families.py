"""The paper's first question for every family: the value of pretraining in diffusion, a flow transformer, a GAN and
an autoregressive model.

    python -m studies.families

For each family, intrinsic and seed, gan_pseudo.py and ar_pseudo.py train one LoRA on the trained generator and one on
the same network with random weights. References are the mean label, a linear readout of w (GAN), and the label through
the tokens (autoregressive). With --snapshots the fourth question too: the same LoRA on snapshots of the pretraining.
Diffusion's and the flow transformer's trainings are those of studies.paper_questions, from its JSON file. Runs are
kept in --work, and the same command continues an interrupted study. Tables and plots are written to
studies/results/generators.md. Existing results of families and intrinsics that are not asked for are kept.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from generators.transformer import load_autoregressive
from miniworld import pretrain_ar, pretrain_gan
from miniworld.demo_steps import python
from studies import quality
from studies.families_page import KNOWN, Answers, of_diffusion, write_page
from studies.held_out import (
    HELD_OUT,
    ar_errors,
    gan_errors,
    generated,
    linear_readout,
    mean_label,
    random_generator,
    scenes,
    through_tokens,
    vae_ceiling,
)
from utils.base_model.stable_diffusion import load_base
from utils.cli import Parser, path_flag
from utils.errors import run
from utils.intrinsics import INTRINSICS
from utils.lora import SAFETENSORS, read_lora
from utils.paths import ROOT

GAN, AR, SD = (ROOT / "miniworld" / name for name in ("mini-gan", "mini-ar", "mini-sd"))
TEACHER = ROOT / "miniworld" / "mini-teacher"
DECODINGS = {"ar": "at_once", "ar-one-by-one": "one_by_one"}
BATCH, RATE, VAL, SIDE = 8, 4e-3, 100, 64

Errors = dict[str, np.ndarray]  # column -> (seeds, images)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m studies.families", description=__doc__)
    add = parser.add_argument
    families = ["gan", *DECODINGS]
    add("--families", nargs="*", choices=families, default=families, help="none: only the other rows are updated")
    add("--tasks", nargs="+", choices=list(INTRINSICS), default=list(INTRINSICS))
    add("--seeds", type=int, default=3, help="trainings of each setting")
    add("--steps", type=int, default=300, help="of each training")
    add("--images", type=int, default=300, help="labelled images of each training")
    add("--snapshots", type=path_flag, metavar="FOLDER", help="the fourth question: what python -m "
        "miniworld.pretrain_gan and pretrain_ar left in their --work; without it, it is not asked")  # fmt: skip
    add("--work", type=path_flag, default=Path("output/families"), help="trainings")
    add(
        "--docs",
        type=path_flag,
        default=Path("studies/results"),
        help="folder of generators.md and paper_questions.json",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    diode = args.work / "DIODE"
    python("-m", "miniworld.scenes", "--root", diode, "--train", args.images, "--val", VAL, "--truth")
    answers: Answers = {}
    for family in args.families:
        answers[family] = {task: measure(family, task, args) for task in args.tasks}
    vae = load_base(str(SD)).vae
    references: dict[str, Errors] = {}
    for task in args.tasks:
        known, unseen = (scenes(diode, task, split, SIDE) for split in ("train", "val"))
        mean = mean_label(known, unseen, task, "diode")[None]
        references[task] = {"mean": mean, "ceiling": vae_ceiling(vae, unseen, task)[None]}
    answers |= of_diffusion(args.docs / "paper_questions.json", references)
    study = {"steps": args.steps, "batch": BATCH, "images": args.images, "rate": RATE}
    print(write_page(answers, along(args, references), study, args.docs))


def along(args: argparse.Namespace, references: dict[str, Errors]) -> dict[str, list[quality.Row]]:
    """Family -> snapshots, from the first to the whole generator; without --snapshots diffusion's and the flow's."""
    task, found = quality.TASK, {}
    if task in references:
        path, mean = args.docs / "paper_questions.json", references[task]["mean"]
        found = {family: quality.of_diffusion(path, mean, question) for family, question in quality.DIFFUSION.items()}
    if args.snapshots is None:
        return found
    for family, whole, pretraining in (("gan", GAN, pretrain_gan), ("ar", AR, pretrain_ar)):
        if family in args.families:
            made = quality.snapshots(family, args.snapshots / pretraining.NAME, whole, args.work)
            made[pretraining.parse_args([]).steps] = whole
            found[family] = [of_snapshot(family, step, base, args) for step, base in made.items()]
    return found


def of_snapshot(family: str, step: int, base: Path, args: argparse.Namespace) -> quality.Row:
    """Errors of the LoRAs on one snapshot, in normals. A GAN's images, and so its mean label, are its own."""
    loras = [train(family, quality.TASK, base, seed, args, painter=base) for seed in range(args.seeds)]
    of = partial(of_gan, painter=base) if family == "gan" else of_transformer
    errors = of(quality.TASK, {"trained": base}, {"trained": loras}, args)
    kept = {name: errors[name].tolist() for name in ("trained", "mean")}
    return {"step": step, "distance": quality.distance(base), "errors": kept}


def measure(family: str, task: str, args: argparse.Namespace) -> dict:
    """Results of one intrinsic: "errors" by column of KNOWN, each (seeds, images), and the LoRA's "parameters"."""
    trained, random = (GAN, "gan-random") if family == "gan" else (AR, "ar-random")
    bases = {"trained": trained, "random": random_generator(trained, args.work / random)}
    loras = {
        name: [train(family, task, base, seed, args) for seed in range(args.seeds)] for name, base in bases.items()
    }
    found = (of_gan if family == "gan" else of_transformer)(task, bases, loras, args)
    parameters = sum(value.numel() for value in read_lora(loras["trained"][0]).state.values())
    return {"errors": {name: found[name].tolist() for name in KNOWN if name in found}, "parameters": parameters}


def of_gan(
    task: str, bases: dict[str, Path], loras: dict[str, list[Path]], args: argparse.Namespace, painter: Path = GAN
) -> Errors:
    """Errors of the LoRAs and of the references; painter: the GAN whose images are labelled."""
    known, unseen = (
        generated(painter, TEACHER, task, count, seed) for count, seed in ((args.images, 0), (VAL, HELD_OUT))
    )
    found = {}
    for name, base in bases.items():
        items = unseen if base == painter else generated(painter, TEACHER, task, VAL, HELD_OUT, base)
        found[name] = np.stack([gan_errors(base, lora, items, task) for lora in loras[name]])
    found["linear"] = linear_readout(known, unseen, task)[None]
    return found | {"mean": mean_label(known, unseen, task)[None]}


def of_transformer(
    task: str, bases: dict[str, Path], loras: dict[str, list[Path]], args: argparse.Namespace
) -> Errors:
    """Errors of the LoRAs, of the mean label, and of the label itself as tokens."""
    trained = load_autoregressive(str(AR))
    known, unseen = (scenes(args.work / "DIODE", task, split, trained.resolution) for split in ("train", "val"))
    found = {}
    for name, base in bases.items():
        each = [ar_errors(load_autoregressive(str(base)), lora, unseen, task) for lora in loras[name]]
        found[name] = np.stack(each)
    found["mean"] = mean_label(known, unseen, task, "diode")[None]
    return found | {"ceiling": through_tokens(trained, unseen, task)[None]}


def train(family: str, task: str, base: Path, seed: int, args: argparse.Namespace, painter: Path = GAN) -> Path:
    """Run the family's script, unless it has run to its end; its output folder."""
    folder = args.work / f"{family}-{task}-{base.name}-{seed}"
    if (folder / SAFETENSORS).is_file():
        return folder
    words = ["--task", task, "--pretrained_model_name_or_path", base, "--output_dir", folder, "--seed", seed]
    words += ["--max_train_steps", args.steps, "--train_batch_size", BATCH, "--rank", 8, "--learning_rate", RATE]
    words += ["--num_train_imgs", args.images, "--lr_scheduler", "linear", "--validation_steps", 0]
    words += ["--report_to", "none", "--resume_from_checkpoint", "latest"]
    if family == "gan":
        words += ["--teacher", TEACHER, "--pictures_from", painter]
    else:
        diode = args.work / "DIODE"
        words += ["--train_data_dir", diode / INTRINSICS[task].truth_folder, "--pseudo_root", diode / "pseudo" / task]
        words += ["--decoding", DECODINGS[family]]
    python(ROOT / ("gan_pseudo.py" if family == "gan" else "ar_pseudo.py"), *words)
    return folder


if __name__ == "__main__":
    run(main)
