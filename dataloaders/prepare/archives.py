"""From DIODE's archives to the tree that the scripts read: verify, unpack safely, list."""

import argparse
import gzip
import hashlib
import re
import shlex
import tarfile
import zlib
from collections import Counter
from itertools import chain
from pathlib import Path

from tqdm.auto import tqdm

from utils.errors import InputError, note, one_line
from utils.image_io.diode_names import listed_samples, read_meta
from utils.system.atomic import json_object, write_json

MD5 = {  # as published at diode-dataset.org
    "depths": {"val": "5c895d09201b88973c8fe4552a67dd85", "train": "3a94632398fe1d002d89f11743f748b1"},
    "normals": {"val": "323ccaf60abebdb59705dcd8b529d709", "train": "9c0617ebe1eaf1928fdf3344e1c42aef"},
}
ENDINGS = {"depths": (".png", "_depth.npy", "_depth_mask.npy"), "normals": ("_normal.npy",)}
MEMBER = re.compile(r"(train|val)/(indoors|outdoor)/scene_\d+/scan_\d+/[\w.-]+")
LARGEST = 256 * 2**20  # bytes of one file; DIODE's largest has 19 MB
STATE = ".prepared.json"  # which archives were verified and unpacked


def prepare_archives(args: argparse.Namespace) -> None:
    """Unpack DIODE's archives that the flags name."""
    if not args.depths + args.normals:
        raise InputError("nothing to unpack: pass --depths and --normals archives")
    prepare(args.root, {"depths": args.depths, "normals": args.normals}, args.skip_md5)


def verify(archive: Path, kind: str, state: dict) -> None:
    """The archive's MD5 sum is one of those published for `kind`; InputError otherwise. Remembered in `state`."""
    known = state.setdefault("verified", {})
    if known.get(str(archive.resolve())) == _identity(archive):
        return
    digest = hashlib.md5(usedforsecurity=False)
    with archive.open("rb") as file, _bar(archive, "verifying") as bar:
        while chunk := file.read(2**20):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() not in MD5[kind].values():
        other = "normals" if kind == "depths" else "depths"
        hint = "; the download is incomplete or not DIODE's (--skip_md5 for archives of your own)"
        if digest.hexdigest() in MD5[other].values():
            hint = f"; it is one of the {other}: pass it to --{other}"
        raise InputError(f"{archive}: MD5 sum {digest.hexdigest()} is not one published for DIODE's {kind}{hint}")
    known[str(archive.resolve())] = _identity(archive)


def unpack(archive: Path, root: Path, kind: str) -> Counter[str]:
    """Write the archive's files below root/kind; return how many were written, already there, and passed over.

    Only regular files named as DIODE's are written, each under another name first, so that a file that is there is
    whole and an interrupted run continues with the next. Raises InputError, and writes nothing outside root/kind, for
    an absolute name, a "..", a link or a device, and for an archive that is cut off.
    """
    counts: Counter[str] = Counter()
    with archive.open("rb") as file, _bar(archive, "unpacking") as bar:
        try:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if zipped else file
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    bar.update(file.tell() - bar.n)
                    counts[_place(tar, member, root / kind, kind, archive)] += 1
            while stream.read(2**20):  # to the end, where gzip tells whether it is the end
                pass
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{archive}: broken or cut off ({error}); download it again") from None
        except OSError as error:
            raise InputError(f"{archive} -> {root}: {error}; run the same command again to continue") from None
    if not counts["written"] + counts["replaced"] + counts["there"]:
        raise InputError(f"{archive}: holds none of DIODE's {kind} (train/ or val/ with *{ENDINGS[kind][-1]})")
    return counts


def complete_meta(root: Path) -> tuple[int, int]:
    """Write diode_meta.json, or add the splits and scene types that it does not know; return (added, listed).

    A list that is there is never changed otherwise: DIODE's own leaves out images on purpose.
    """
    path = root / "diode_meta.json"
    meta = read_meta(root) if path.is_file() else {}
    known = {(split, kind) for split, kinds in meta.items() for kind, scenes in kinds.items() if scenes}
    added = 0
    for picture in sorted((root / "depths").rglob("*.png")):
        split, kind, scene, scan = picture.relative_to(root / "depths").parts[:-1]
        if (split, kind) not in known:
            scenes = meta.setdefault(split, {}).setdefault(kind, {})
            scenes.setdefault(scene, {}).setdefault(scan, []).append(picture.stem)
            added += 1
    if added:
        write_json(path, meta)
    return added, len(listed_samples(root)) if path.is_file() else 0


def prepare(root: Path, archives: dict[str, list[Path]], skip_md5: bool = False) -> None:
    """Bring archives (kind -> files) into `root`; run it again after an interruption, and it continues."""
    for archive in chain(*archives.values()):
        if not archive.is_file():
            raise InputError(f"{archive}: no such archive")
    root.mkdir(parents=True, exist_ok=True)
    state = _read_state(root)
    for kind, files in archives.items():
        for archive in files:
            done = state.setdefault("unpacked", {})
            if done.get(f"{kind} {archive.resolve()}") == _identity(archive):
                note(f"{archive}: already unpacked (remove {root / STATE} to do it again)")
                continue
            if not skip_md5:
                verify(archive, kind, state)
                write_json(root / STATE, state)
            counts = unpack(archive, root, kind)
            done[f"{kind} {archive.resolve()}"] = _identity(archive)
            write_json(root / STATE, state)
            changed = f", {counts['replaced']} of another size replaced" if counts["replaced"] else ""
            note(
                f"{archive}: {counts['written']} files written to {root / kind}, {counts['there']} were there{changed}"
                f", {counts['other']} of other names passed over"
            )
    if (root / "depths").is_dir():
        added, listed = complete_meta(root)
        note(
            f"{root / 'diode_meta.json'}: {added} names added, {listed} listed (DIODE's own list has 612 of val's 771)"
        )
        print(one_line(f"next: python -m dataloaders check --root {shlex.quote(str(root))}"), flush=True)


def _place(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, kind: str, archive: Path) -> str:
    """Write one member if it is one of DIODE's files: "written", "replaced", "there", "folder" or "other"."""
    name = member.name.removeprefix("./")
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
        raise InputError(f"{archive}: its member {member.name!r} points outside; this is not DIODE's archive")
    if member.isdir():
        return "folder"
    if not member.isreg():
        raise InputError(f"{archive}: its member {member.name!r} is a link or a device; this is not DIODE's archive")
    if not MEMBER.fullmatch(name) or not name.endswith(ENDINGS[kind]) or name.rsplit("/", 1)[1].startswith("."):
        return "other"
    if member.size > LARGEST:
        raise InputError(
            f"{archive}: its member {member.name!r} claims {member.size} bytes; this is not DIODE's archive"
        )
    target = folder / name
    if target.is_file() and target.stat().st_size == member.size:
        return "there"
    target.parent.mkdir(parents=True, exist_ok=True)
    known = "replaced" if target.is_file() else "written"
    draft = target.with_name(target.name + ".part")
    content = tar.extractfile(member)
    if content is None:  # for a regular file there is one
        raise EOFError(f"{member.name} has no content")
    with content as source, draft.open("wb") as sink:
        while chunk := source.read(2**20):
            sink.write(chunk)
    if draft.stat().st_size != member.size:
        raise EOFError(f"{member.name} ends early")
    draft.replace(target)
    return known


def _identity(archive: Path) -> list[int]:
    status = archive.stat()
    return [status.st_size, status.st_mtime_ns]


def _bar(archive: Path, what: str) -> tqdm:
    return tqdm(total=archive.stat().st_size, desc=f"{what} {archive.name}", unit="B", unit_scale=True, disable=None)


def _read_state(root: Path) -> dict:
    try:
        return json_object((root / STATE).read_text())
    except (OSError, ValueError):
        return {}  # nothing known: everything is verified again, and files that are there are kept
