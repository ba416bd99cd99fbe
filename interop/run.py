"""Tests the exchange of LoRA files with the real libraries, old and new. `make interop` runs it.

Builds one environment per diffusers release under .interop/, trains a LoRA with this project (two steps on the mini
world) on attention and one on all layers, writes them in every key format that can name their layers, loads each file
in each release by that release's own calls (probe.py) and by this project's loader (ours.py), lets diffusers 0.20
train one that this project loads, and writes the table of results into interop/README.md (page.py). Exits with 1
where something in PROMISED does not hold.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from interop.page import FAMILY_FILES, FILES, PIPELINES, REVERSE, families_table, table, write_page
from utils.lora.__main__ import READ_AS
from utils.paths import ROOT

WORK = ROOT / ".interop"
CASES, TRAINED = WORK / "cases", WORK / "trained-by-0.20"
COMMON = ("pillow", "numpy", "pytest", "pytest-xdist", "hypothesis")
# 0.20.2 is the release that the released code pins, with what was current in August 2023; later transformers,
# accelerate and huggingface-hub no longer work with it, numpy 2 does not work with transformers 4.31.
ENVIRONMENTS = {
    "0.20.2": "diffusers==0.20.2 transformers==4.31.0 accelerate==0.21.0 huggingface-hub==0.16.4 safetensors==0.3.3 "
    "numpy==1.26.4 pillow",
    "0.35.2": "diffusers==0.35.2 transformers==4.56.2 accelerate==1.10.1 peft==0.17.1 huggingface-hub==0.35.3",
    "0.39.0": "diffusers==0.39.0 transformers==5.23.0 accelerate==1.15.0 peft==0.21.2 huggingface-hub==1.33.0",
    "newest": "diffusers transformers accelerate peft",
}
OLDEST = "0.20.2"  # knows no peft, so this project's loader does not run there; it trains instead
TRAINED_HERE = {"diffusers": "run", "all-peft": "run-all"}  # the trainer's own files, untouched
BEFORE_040, TODAY, ALL = ("0.20.2", "0.35.2", "0.39.0"), ("0.35.2", "0.39.0", "newest"), tuple(ENVIRONMENTS)
PROMISED = {
    "attn_procs_dict diffusers": BEFORE_040,
    "attn_procs_folder diffusers": BEFORE_040,
    "attn_procs_dict released": BEFORE_040,
    "pipe diffusers": ALL,
    "adapter diffusers": TODAY,
    "pipe peft": TODAY,
    "adapter peft": TODAY,
    "pipe kohya": TODAY,
    "pipe all-peft": TODAY,
    "adapter all-peft": TODAY,
    "pipe all-kohya": ("0.39.0", "newest"),  # 0.35.2 leaves time_embedding's two layers out and says nothing
    **{f"ours {name}": TODAY for name in FILES},
    **{f"reverse {name}": TODAY for name in REVERSE},
    "augunet pipe": ALL,
    "augunet ours": TODAY,
    "augunet-all pipe": TODAY,
    "augunet-all ours": TODAY,
    **{
        f"{family} {name}": ("0.39.0", "newest")
        for family in PIPELINES
        for name in FAMILY_FILES
        if family in READ_AS.get(name.removeprefix("all-"), PIPELINES)
    },
}


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def call(*words: object, log: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command from the project's root; its output goes to .interop/<log>.log, to the screen if it fails."""
    path = WORK / f"{log}.log"
    with path.open("w") as file:
        done = subprocess.run(
            [str(word) for word in words], cwd=ROOT, env={**os.environ, **(env or {})}, stdout=file, stderr=file
        )
    if done.returncode:
        print(path.read_text()[-3000:], file=sys.stderr)
        sys.exit(f"error: {' '.join(map(str, words))[:200]} failed; see {path}")


def build(name: str, torch_pin: str) -> Path:
    """The environment's Python; installed once, again where its list changed, and `newest` brought up to date."""
    folder, wanted = WORK / "envs" / name, ENVIRONMENTS[name] + " " + " ".join(COMMON if name != OLDEST else ())
    stamp, python = folder / "installed", folder / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet")
    if not (stamp.is_file() and stamp.read_text() == f"{torch_pin} {wanted}"):
        say(f"{name}: installing {torch_pin} {wanted}")
        shutil.rmtree(folder, ignore_errors=True)
        call(sys.executable, "-m", "venv", folder, log=f"venv-{name}")
        call(*pip, torch_pin, log=f"torch-{name}")
        call(*pip, torch_pin, *wanted.split(), log=f"install-{name}")
        stamp.write_text(f"{torch_pin} {wanted}")
    elif name == "newest":
        call(*pip, "--upgrade", torch_pin, *wanted.split(), log=f"install-{name}")
    return python


def versions(python: Path) -> dict[str, str]:
    code = (
        "import json\nfrom importlib.metadata import distributions\n"
        "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version for d in distributions()}))"
    )
    return json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def make_cases(python: str = sys.executable) -> None:
    """Train for two steps with this project; lay out the LoRA in every format, the UNet and inputs for the probes."""
    shutil.rmtree(CASES, ignore_errors=True)
    world, base = CASES / "world", CASES / "random-sd"
    CASES.mkdir(parents=True)
    say("rendering a world, making a random model and InstructPix2Pix's stand-in")
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    scenes = ("--train", 8, "--val", 4, "--size", "96x72", "--seed", 7)
    call(python, "-m", "miniworld.scenes", "--root", world, *scenes, log="scenes")
    call(python, "-m", "miniworld.pretraining.random_sd", "--out", base, log="random_sd")
    # a large rate, so that two steps change the output by more than the comparison's tolerance, many times over
    shared = ["--train_data_dir", world / "normals", "--pseudo_root", world / "pseudo" / "normal", "--resolution", 64]
    shared += ["--train_batch_size", 2, "--max_train_steps", 2, "--learning_rate", 0.03, "--report_to", "none"]
    shared += ["--pretrained_model_name_or_path", base, "--validation_steps", 1000]
    donor = CASES / "random-ip2p"
    words = ("--out", donor, "--in_channels", 8, "--seed", 1)
    call(python, "-m", "miniworld.pretraining.random_sd", *words, log="random_ip2p")
    for method, more, outputs in (
        ("sd_single", (), (CASES / "run", CASES / "run-all")),
        ("augunet", ("--augment_from", donor), (CASES / "augunet", CASES / "augunet-all")),
    ):
        for output, targets in zip(outputs, ("attention", "all")):
            script, words = f"{method}_diode_pseudo_normal.py", ("--output_dir", output, "--lora_targets", targets)
            say(f"training two steps with {script}, {targets}")
            call(python, script, *shared, *more, *words, log=f"train-{output.name}", env=offline)
    for name in FILES:
        folder = CASES / "files" / name
        if name in TRAINED_HERE:
            folder.mkdir(parents=True)
            for file in ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"):
                shutil.copy(CASES / TRAINED_HERE[name] / file, folder)
            continue
        source = CASES / TRAINED_HERE["all-peft" if name.startswith("all-") else "diffusers"]
        for suffix in (".safetensors", ".bin"):
            words = (source, folder / f"pytorch_lora_weights{suffix}", "--format", name.removeprefix("all-"))
            call(python, "-m", "utils.lora", "convert", *words, log=f"convert-{name}")
    call(python, "-m", "interop.unet", base, CASES, log="unet")
    say("training two steps each on the other families of base models")
    call(python, "-m", "interop.families", world, CASES, log="families", env=offline)


def measure(name: str, python: Path) -> dict:
    """All results of one environment: call and format -> outcome."""
    found = versions(python)
    say(f"{name}: probing diffusers {found['diffusers']}")
    # not offline mode: in it, 0.35.2's pipe.load_lora_weights refuses even a local folder unless told the file's name
    env = {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    if name == OLDEST:
        shutil.rmtree(TRAINED, ignore_errors=True)
        call(python, ROOT / "interop" / "probe.py", CASES, TRAINED, "--train", log="train-0.20", env=env)
    out = WORK / f"probe-{name}.json"
    call(python, ROOT / "interop" / "probe.py", CASES, out, log=f"probe-{name}", env=env)
    probed = json.loads(out.read_text())
    result = {"versions": found, "effect": probed["effect"], "results": probed["calls"], "tests": None}
    if name != OLDEST:
        env["PYTHONPATH"] = str(ROOT)
        call(python, ROOT / "interop" / "ours.py", CASES, TRAINED, out, log=f"ours-{name}", env=env)
        result["results"] |= json.loads(out.read_text())
        tests = ("tests/lora/test_lora.py", "tests/lora/test_lora_keys.py", "tests/lora/test_lora_targets.py")
        call(python, "-m", "pytest", "-p", "no:cacheprovider", "-rs", *tests, log=f"tests-{name}", env=env)
        result["tests"] = (WORK / f"tests-{name}.log").read_text().strip().splitlines()[-1].strip("= ")
    return result


def broken_promises(measured: Mapping[str, dict]) -> list[str]:
    """Entries of PROMISED that the measurement does not confirm."""
    broken = []
    for key, names in PROMISED.items():
        for name in set(names) & set(measured):
            result = measured[name]["results"].get(key, {"status": "not measured"})
            if result["status"] != "ok":
                broken.append(f"{key} on {name}: {result}")
    return sorted(broken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ENVIRONMENTS, help="these releases; the page is left alone then")
    args = parser.parse_args()
    if sys.version_info[:2] not in ((3, 10), (3, 11)):
        sys.exit("error: the packages of 2023 need Python 3.10 or 3.11: make interop PYTHON=python3.11")
    WORK.mkdir(exist_ok=True)
    torch_pin = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0]
    names = [name for name in ENVIRONMENTS if not args.only or name in args.only]
    pythons = {name: build(name, torch_pin) for name in names}
    make_cases()
    measured = {name: measure(name, python) for name, python in pythons.items()}
    (WORK / "interop.json").write_text(json.dumps(measured, indent=1))
    print(table(measured), families_table(measured), sep="\n\n")
    for name, result in measured.items():
        print(f"tests/lora on {name}: {result['tests'] or 'not run: it has no peft'}")
    if not args.only:
        write_page({"interop": table(measured), "families": families_table(measured)})
    broken = broken_promises(measured)
    say(f"{len(broken)} promises broken" + "".join(f"\n  {line}" for line in broken))
    sys.exit(bool(broken))


if __name__ == "__main__":
    STARTED = time.monotonic()
    main()
