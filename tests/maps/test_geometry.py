"""Depth in space: known surfaces, their analytic points, and the files as other programs read them."""

import io
import json

import numpy as np
import trimesh
from PIL import Image

from utils.image_io import geometry

FOV, WIDTH, HEIGHT = 70.0, 64, 48
FOCAL = WIDTH / 2 / np.tan(np.radians(FOV) / 2)


def rays() -> np.ndarray:
    """(H,W,3) in opencv axes, z = 1."""
    x, y = np.meshgrid((np.arange(WIDTH) + 0.5 - WIDTH / 2) / FOCAL, (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) / FOCAL)
    return np.stack([x, y, np.ones_like(x)], -1)


def floor_and_wall() -> np.ndarray:
    """Depth in metres of a floor 1.5 m below the camera and a wall 4 m away."""
    down = rays()[..., 1]
    return np.minimum(1.5 / np.maximum(down, 1e-9), 4.0)


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_an_affine_prediction_with_near_and_far_gives_the_scene_back():
    depth = floor_and_wall()
    prediction = (-0.37 * depth + 0.9).astype(np.float32)  # what is predicted: near = large, scale and shift unknown
    metres = geometry.metres(prediction, depth.min(), depth.max())
    np.testing.assert_allclose(metres, depth, atol=1e-5)
    places = geometry.points(metres, FOV)
    np.testing.assert_allclose(places, rays() * depth[..., None] * (1, -1, -1), atol=1e-5)
    floor = depth < 4
    np.testing.assert_allclose(places[floor][:, 1], -1.5, atol=1e-5)  # y is up, the floor is flat and level
    np.testing.assert_allclose(places[~floor][:, 2], -4, atol=1e-5)  # the viewer looks along -z
    assert places[0, 0, 0] < 0 < places[0, -1, 0] and places[0, 0, 1] > 0


def test_a_tilted_plane_stays_a_plane_and_a_disparity_would_not():
    normal = np.array([0.3, -0.4, -0.8])
    depth = -2.5 / (rays() @ normal)
    places = geometry.points(depth, FOV) * (1, -1, -1)
    np.testing.assert_allclose(places @ normal, -2.5, atol=1e-9)


def test_triangles_face_the_camera_and_do_not_cross_jumps():
    depth = np.full((HEIGHT, WIDTH), 4.0)
    depth[10:30, 20:40] = 1.0
    places = geometry.points(depth, FOV)
    faces = geometry.triangles(places)
    z = places.reshape(-1, 3)[faces][..., 2]
    assert np.ptp(z, axis=1).max() == 0
    whole = geometry.triangles(geometry.points(np.full_like(depth, 4.0), FOV))
    assert len(whole) == 2 * (HEIGHT - 1) * (WIDTH - 1)
    ring = 2 * (21 * 21 - 19 * 19) - 2  # the quads around the square of 20 pixels; two triangles touch no corner of it
    assert len(whole) - len(faces) == ring
    a, b, c = np.moveaxis(places.reshape(-1, 3)[faces], 1, 0)
    assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), a) < 0).all()
    floor = geometry.points(np.minimum(1.5 / np.maximum(rays()[..., 1], 1e-9), 12.0), FOV)
    assert len(geometry.triangles(floor)) == len(whole)  # a floor that reaches 12 m away is one surface


def test_a_constant_map_is_at_near():
    assert (geometry.metres(np.ones((4, 4), np.float32), 2, 5) == 2).all()


def test_the_surface_is_read_back_by_trimesh_with_its_colours_where_they_belong():
    image, places = picture(), geometry.points(floor_and_wall(), FOV)
    scene = trimesh.load(io.BytesIO(geometry.glb(places, image, {"task": "depth", "near": 1.5})), file_type="glb")
    (mesh,) = scene.geometry.values()
    np.testing.assert_allclose(mesh.vertices, places.reshape(-1, 3), atol=1e-6)
    assert (mesh.face_normals @ (0, 0, 1) > -1e-9).all()
    texture = np.asarray(mesh.visual.material.baseColorTexture)
    column = (mesh.visual.uv[:, 0] * WIDTH).astype(int)
    row = ((1 - mesh.visual.uv[:, 1]) * HEIGHT).astype(int)
    np.testing.assert_array_equal(texture[row, column][:, :3], np.asarray(image).reshape(-1, 3))
    assert mesh.metadata["task"] == "depth" and mesh.metadata["near"] == 1.5


def test_the_files_own_texture_coordinates_begin_at_the_upper_left():
    """By the letter of glTF 2.0, without a reader's help: the first vertex is the upper left pixel."""
    content = geometry.glb(geometry.points(floor_and_wall(), FOV), picture(), {})
    length = int.from_bytes(content[12:16], "little")
    header, binary = json.loads(content[20 : 20 + length]), content[20 + length + 8 :]
    attributes = header["meshes"][0]["primitives"][0]["attributes"]
    view = header["bufferViews"][header["accessors"][attributes["TEXCOORD_0"]]["bufferView"]]
    first = np.frombuffer(binary, "<f4", 2, view.get("byteOffset", 0))
    np.testing.assert_allclose(first, [0.5 / WIDTH, 0.5 / HEIGHT], atol=1e-6)


def test_the_points_are_read_back_by_trimesh():
    image, places = picture(), geometry.points(floor_and_wall(), FOV)
    content = geometry.ply(places, image, {"task": "depth", "lora": "ä\nb"})
    cloud = trimesh.load(io.BytesIO(content), file_type="ply")
    np.testing.assert_allclose(cloud.vertices, places.reshape(-1, 3), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(cloud.colors)[:, :3], np.asarray(image).reshape(-1, 3))
    assert b'comment task: "depth"\ncomment lora: "\\u00e4\\nb"\n' in content
