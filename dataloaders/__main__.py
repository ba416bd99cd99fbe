"""`python -m dataloaders prepare` and `check`; `python -m dataloaders.diode` is an older name of the same."""

from dataloaders import check, prepare
from utils.cli import Parser
from utils.errors import run

DESCRIPTION = """Data on disk.

    python -m dataloaders prepare --depths val.tar.gz --normals val_normals.tar.gz --root DIODE
    python -m dataloaders prepare hypersim --source HYPERSIM --split_csv SPLIT.csv --root data/hypersim
    python -m dataloaders check --root DIODE --pseudo_root pseudo/normal
    python -m dataloaders check --dataset folder --train_data_dir data

prepare verifies DIODE's archives by their published MD5 sums and unpacks them into root/depths and root/normals.
prepare hypersim, vkitti2 and interiorverse write images, exact maps, masks, and labels of every intrinsic of the set,
as folders for --dataset folder. Run it again after an interruption. check opens every file and reports, per scene,
what is missing, corrupt or mismatched; its exit status is 1 if anything is.
"""


def main(argv: list[str] | None = None) -> int | None:
    parser = Parser(prog="python -m dataloaders", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare.add_flags(commands.add_parser("prepare", help="DIODE's archives, or a set with exact truth"))
    check.add_flags(commands.add_parser("check", help="open every file"))
    args = parser.parse_args(argv)
    if args.command == "check":
        return check.check(args)
    return prepare.prepare(args)


if __name__ == "__main__":
    run(main)
