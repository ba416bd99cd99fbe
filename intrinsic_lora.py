"""The command `intrinsic-lora`: where the scripts are, and how to run them.

pip installs the dependencies and this command. The scripts are run from a clone of the repository, because an
experiment is a script that is read and changed.
"""

from pathlib import Path

CLONE = "git clone https://github.com/<owner>/<repository>.git intrinsic-lora && cd intrinsic-lora"
TEXT = """The scripts are run from {where}:

  {enter}
  python predict.py examples                      # normals, depth, albedo and shading of photographs
  python sd_single_diode_pseudo_normal.py --help  # training

README.md there has all commands.
"""


def main() -> None:
    here = (Path.cwd(), Path(__file__).resolve().parent)  # the latter after pip install -e
    folder = next((path for path in here if (path / "sd_single_diode_pseudo_normal.py").is_file()), None)
    where, enter = ("their folder", f"cd {folder}") if folder else ("a clone of the repository", CLONE)
    print(TEXT.format(where=where, enter=enter), end="")


if __name__ == "__main__":
    main()
