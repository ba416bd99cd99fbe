"""Three furnished rooms as .blend files: a living room, a bedroom, a study. Runs in a Python that has `bpy`.

python room_scenes.py FOLDER

Materials are procedural and light comes from areas below the ceiling, so the files need nothing else; the same program
builds the same rooms. The study is made of other materials than the two others.
"""

import random
import sys
from pathlib import Path

import bpy

sys.path.insert(
    0, str(Path(__file__).parent)
)  # Blender, other than Python, does not search the folder of the file it runs
from room_furniture import chair, lamp, picture, plant, shelf, sofa, standing_lamp, table
from room_parts import Piece, material, room

WHITE, CREAM, GREY = (0.75, 0.74, 0.72), (0.72, 0.64, 0.5), (0.3, 0.31, 0.33)
OAK, DARK_OAK, WALNUT = (0.5, 0.32, 0.17), (0.36, 0.21, 0.1), (0.2, 0.1, 0.05)


def books_of(colours) -> list:
    return [material(f"book {i}", colour) for i, colour in enumerate(colours)]


def living(rng) -> None:
    oak = material("oak", OAK, DARK_OAK, "WAVE", 2.5, gloss=True)
    plaster, brick = (
        material("plaster", WHITE, CREAM, "NOISE", 3),
        material("brick", (0.42, 0.16, 0.1), (0.3, 0.12, 0.08), "BRICK", 4),
    )
    blue, stripes = (
        material("blue", (0.08, 0.17, 0.34), (0.12, 0.23, 0.42), "NOISE", 25),
        material("stripes", (0.75, 0.6, 0.2), (0.7, 0.68, 0.6), "WAVE", 9),
    )
    room(
        (6, 5, 2.7), oak, (plaster, brick, plaster, material("green", (0.35, 0.46, 0.35))), material("ceiling", WHITE)
    )
    Piece((3, 2.4)).box((0, 0, 0.01), (2.8, 2, 0.02), material("rug", (0.5, 0.1, 0.1), CREAM, "CHECKER", 3), 0)
    sofa((3, 4.2), 0, 2.2, blue, stripes)
    sofa((0.8, 2.4), 90, 1.1, material("rust", (0.45, 0.15, 0.06), (0.5, 0.2, 0.08), "NOISE", 20), stripes)
    walnut = material("walnut", WALNUT, OAK, "WAVE", 4, gloss=True)
    table((3, 2.5), 8, (1.1, 0.6), 0.42, walnut)
    Piece((2.8, 2.5)).ball((0, 0, 0.5), 0.09, material("vase", (0.1, 0.4, 0.42), gloss=True))
    Piece((3.3, 2.4), 20).box((0, 0, 0.44), (0.3, 0.2, 0.04), material("book", (0.6, 0.55, 0.1)))
    shelf(
        (5.7, 1.6), -90, (1.5, 0.3, 1.9), oak, books_of([(0.5, 0.1, 0.1), (0.1, 0.2, 0.4), (0.6, 0.5, 0.3), GREY]), rng
    )
    plant((5.4, 4.4), material("pot", (0.5, 0.25, 0.15)), material("leaf", (0.08, 0.25, 0.06)), rng)
    standing_lamp((0.6, 4.3), material("metal", GREY), material("shade", (0.75, 0.65, 0.45)))
    table((1.6, 0.8), 0, (1.3, 0.7), 0.74, oak)
    chair((1.4, 1.4), 170, walnut, stripes)
    picture((3, 4.95, 1.7), 0, (1.2, 0.8), walnut, material("art", (0.1, 0.3, 0.6), (0.8, 0.5, 0.2), "NOISE", 3))
    lamp((2, 2.5, 2.65), (1.6, 1.2), 110)
    lamp((4.8, 1.5, 2.65), (0.8, 0.8), 40)


def bedroom(rng) -> None:
    pine = material("pine", (0.62, 0.44, 0.24), (0.5, 0.33, 0.17), "WAVE", 3)
    paper = material("wallpaper", (0.62, 0.6, 0.68), (0.45, 0.43, 0.56), "CHECKER", 5)
    walls = (paper, material("rose", (0.62, 0.42, 0.4)), material("plaster", WHITE, CREAM, "NOISE", 2), paper)
    room((4.5, 5, 2.6), material("carpet", (0.34, 0.32, 0.28), (0.42, 0.4, 0.36), "NOISE", 30), walls,
         material("ceiling", WHITE))  # fmt: skip
    linen, blanket = material("linen", WHITE), material("blanket", (0.1, 0.32, 0.3), (0.6, 0.58, 0.5), "WAVE", 4)
    bed = Piece((2.2, 3.7))
    bed.box((0, 0, 0.18), (1.7, 2.1, 0.3), pine, 0.03)
    bed.box((0, 0, 0.42), (1.6, 2, 0.22), linen, 0.08)
    bed.box((0, -0.3, 0.5), (1.7, 1.45, 0.14), blanket, 0.06)
    bed.box((0, 1.08, 0.6), (1.8, 0.06, 1.1), pine, 0.02)
    for side in (-0.4, 0.4):
        bed.box((side, 0.75, 0.58), (0.6, 0.38, 0.16), linen, 0.07)
    for x in (0.9, 3.5):
        Piece((x, 4.6)).box((0, 0, 0.25), (0.45, 0.4, 0.5), pine, 0.015)
        Piece((x, 4.6)).rod((0, 0, 0.5), 0.05, 0.2, material("foot", (0.4, 0.12, 0.1), gloss=True), 0.03)
        Piece((x, 4.6)).rod((0, 0, 0.68), 0.14, 0.2, material("shade", CREAM), 0.08)
    wardrobe = Piece((0.4, 1.8), 90)
    wardrobe.box((0, 0, 1), (1.6, 0.6, 2), material("door", (0.55, 0.5, 0.4)), 0.02)
    for side in (-0.4, 0.4):
        wardrobe.box((side, -0.31, 1), (0.7, 0.03, 1.8), pine, 0.01)
    chair((3.6, 1.6), -60, pine, blanket)
    Piece((2.4, 1.7)).rod((0, 0, 0), 0.9, 0.02, material("rug", (0.55, 0.4, 0.1), (0.3, 0.1, 0.2), "WAVE", 3))
    Piece((2.2, 1.2)).ball((0, 0, 0.22), 0.34, material("pouf", (0.5, 0.2, 0.3), (0.6, 0.3, 0.35), "NOISE", 9), 0.65)
    plant((4, 0.6), material("pot", (0.2, 0.3, 0.4)), material("leaf", (0.12, 0.3, 0.08)), rng)
    picture((4.45, 2.6, 1.5), -90, (0.8, 1), pine, material("art", (0.7, 0.6, 0.2), (0.1, 0.2, 0.2), "CHECKER", 7))
    lamp((2.2, 2.2, 2.55), (1.2, 1.2), 95)
    lamp((1, 4.2, 2.55), (0.5, 0.5), 20, (1, 0.8, 0.6))


def study(rng) -> None:
    tiles = material("tiles", (0.55, 0.55, 0.52), (0.22, 0.25, 0.28), "CHECKER", 2.5, gloss=True)
    ochre = material("ochre", (0.56, 0.4, 0.16), (0.6, 0.46, 0.22), "NOISE", 4)
    walls = (
        ochre,
        material("white", WHITE),
        material("panels", (0.3, 0.2, 0.13), (0.22, 0.14, 0.09), "WAVE", 1.5),
        ochre,
    )
    room((5, 4.5, 2.8), tiles, walls, material("ceiling", CREAM))
    maple, black = (
        material("maple", (0.66, 0.5, 0.32), (0.58, 0.42, 0.25), "WAVE", 6),
        material("black", (0.06, 0.06, 0.07)),
    )
    books = books_of([(0.1, 0.3, 0.15), (0.6, 0.15, 0.1), (0.2, 0.2, 0.45), CREAM, (0.65, 0.4, 0.1)])
    shelf((1.5, 4.3), 0, (2.2, 0.32, 2.2), maple, books, rng)
    shelf((0.25, 1.4), 90, (1.3, 0.32, 1.2), maple, books, rng)
    table((3.4, 2.2), 12, (1.6, 0.8), 0.75, maple)
    chair((3.3, 1.5), 190, black, material("red", (0.5, 0.06, 0.05)))
    chair((1.2, 2.6), 60, maple, material("moss", (0.2, 0.26, 0.1)))
    desk = Piece((3.4, 2.2), 12)
    desk.box((-0.3, 0.1, 0.96), (0.55, 0.03, 0.34), black, 0.01)
    desk.rod((-0.3, 0.12, 0.75), 0.04, 0.1, black)
    desk.rod((0.5, 0.1, 0.75), 0.045, 0.11, material("mug", (0.1, 0.25, 0.5), gloss=True))
    desk.box((0.25, -0.1, 0.77), (0.22, 0.3, 0.03), books[1], 0)
    cabinet = Piece((4.7, 3.5), -90)
    cabinet.box((0, 0, 0.45), (1.4, 0.45, 0.9), material("teal", (0.08, 0.28, 0.28)), 0.02)
    for side in (-0.35, 0.35):
        cabinet.box((side, -0.23, 0.45), (0.62, 0.02, 0.8), maple, 0.01)
    cabinet.ball((0.2, 0, 1.08), 0.18, material("globe", (0.1, 0.25, 0.5), (0.4, 0.5, 0.2), "NOISE", 4))
    Piece((2.2, 1.6), 20).box(
        (0, 0, 0.01), (1.8, 1.2, 0.02), material("rug", (0.1, 0.12, 0.3), (0.6, 0.5, 0.3), "WAVE", 5), 0
    )
    standing_lamp((4.5, 0.6), black, material("shade", (0.6, 0.6, 0.55)))
    picture((3.6, 4.45, 1.7), 0, (0.9, 0.7), black, material("art", (0.7, 0.2, 0.1), (0.75, 0.7, 0.6), "NOISE", 5))
    lamp((2.6, 2.2, 2.75), (1.4, 1.4), 110, (0.95, 0.97, 1))


ROOMS = {"living": living, "bedroom": bedroom, "study": study}


def main(folder: Path) -> None:
    for number, (name, build) in enumerate(ROOMS.items()):
        bpy.ops.wm.read_factory_settings(use_empty=True)
        build(random.Random(number))
        bpy.ops.wm.save_as_mainfile(filepath=str(folder / f"{name}.blend"))


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
