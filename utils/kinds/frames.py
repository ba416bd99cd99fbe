"""Camera frames of normals by name; imports nothing, so that command lines can list them without delay."""

# For opencv's x (right), y (down), z (forward): which axis of the frame it is, from 1, and with which sign.
FRAMES = {
    "opencv": (1, 2, 3),
    "omnidata": (1, 2, 3),  # what the released code trains on; undocumented, taken as opencv
    "opengl": (1, -2, -3),  # Marigold, DIODE's files
    "dsine": (-1, -2, -3),  # outward normals in opencv axes
    "directx": (1, 2, -3),
    "blender": (1, -3, 2),  # the world's axes, for a camera that looks along y as in the front view
}

AXES = {  # those that maps are written in, in words
    "opencv": "x right, y down, z forward",
    "opengl": "x right, y up, z toward the viewer",
    "directx": "x right, y down, z toward the viewer",
    "blender": "x right, y forward, z up",
}
