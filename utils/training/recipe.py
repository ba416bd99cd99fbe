"""`recipe.txt` in a run's folder: the flags that the run used, as a file that a script reads as @FILE."""

import os
import shlex
from pathlib import Path

from utils.errors import one_line, warn
from utils.system import provenance
from utils.system.atomic import replace
from utils.training.settings import Settings

RECIPE = "recipe.txt"


def write_recipe(settings: Settings, resume_from: Path | None, step: int, precision: str, processes: int) -> None:
    """Write the run's flags to <output_dir>/recipe.txt. With another --output_dir they train the same LoRA again.

    precision: mixed precision in use, which accelerate's file may have set. Where a run continues at `step`, the file
    stays as it is or, if the flags have changed, as recipe-until-<step>.txt. A full disk is a warning.
    """
    path = settings.output_dir / RECIPE
    branched = resume_from is not None and resume_from.resolve().parent != settings.output_dir.resolve()
    words = [*settings.recipe, f"--resume_from_checkpoint={resume_from if branched else 'latest'}"]
    if settings.mixed_precision is None and precision != "no":
        words.append(f"--mixed_precision={precision}")
    start = "python" if processes == 1 else f"accelerate launch --num_processes {processes}"
    commit = provenance.git_state()
    changed = ", with uncommitted changes" if commit["git_dirty"] else ""
    about = [
        "The flags of this run that were passed or differ from the script's defaults. The same training again:",
        f"    {start} {settings.script} @{shlex.quote(str(path))} --output_dir=another/folder",
        f"Version {provenance.versions()['project']}, commit {commit['git_commit'] or 'unknown'}{changed}.",
        f"Relative paths are relative to the current folder, which was {os.getcwd()}.",
    ]
    if "hub_token" in settings.typed:
        about.append("--hub_token was passed too. It is a secret and not kept here.")
    body = "".join(f"{flag}{equals}{equals and shlex.quote(value)}\n" for flag, equals, value in map(parts, words))
    try:
        if step and path.is_file():
            if path.read_bytes().endswith(f"\n\n{body}".encode()):
                return
            former = path.with_name(f"recipe-until-{step}.txt")
            path.replace(former)
            about.append(f"From step {step} on; until then: {former.name}.")
        text = "".join(f"# {one_line(line)}\n" for line in about) + f"\n{body}"
        replace(path, lambda part: part.write_text(text, encoding="utf-8"))
    except OSError as error:  # a full disk is no reason to end a run
        warn(f"{path} could not be written ({error.strerror})")


def parts(word: str) -> tuple[str, str, str]:
    """ "--flag=value" -> flag, "=", value; "--flag" -> flag and two empty strings."""
    return word.partition("=")
