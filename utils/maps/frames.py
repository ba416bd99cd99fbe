"""Camera frames of normals by name; imports nothing, so that command lines can offer them at once."""

# Signs that take a normal of that frame to opencv (x right, y down, z forward). Each is its own inverse.
FRAMES = {
    "opencv": (1, 1, 1),
    "omnidata": (1, 1, 1),  # what the released code trains on; undocumented, taken as opencv
    "opengl": (1, -1, -1),  # right, up, toward the viewer: Marigold, DIODE's files
    "dsine": (-1, -1, -1),  # left, up, back: outward normals in opencv axes
}
