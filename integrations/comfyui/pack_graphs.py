"""The workflow of this project's own nodes, as the check posts it."""

from integrations.comfyui.workflows import Graph


def pack_graph(checkpoint: str, lora: str, image: str) -> Graph:
    """Load, predict, and save: the displayed image, a 16-bit PNG and an EXR, and for normals a relit image."""
    base = {"ckpt_name": checkpoint}
    said = {"lora_name": lora, "task": "as the file says", "prompt": "", "timestep": -1}
    axes = {"frame": "opencv (x right, y down, z forward)", "invert": False}
    graph: Graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": base},
        "2": {"class_type": "LoadIntrinsicLora", "inputs": {"model": ["1", 0], "clip": ["1", 1], **said}},
        "3": {"class_type": "LoadImage", "inputs": {"image": image}},
        "4": {
            "class_type": "PredictIntrinsic",
            "inputs": {"intrinsic": ["2", 0], "vae": ["1", 2], "image": ["3", 0], "resolution": 0},
        },
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "picture"}},
    }
    for number, kind in (("6", "png16"), ("7", "exr")):
        inputs = {"map": ["4", 1], "filename_prefix": f"map_{kind}", "format": kind, **axes}
        graph[number] = {"class_type": "SaveIntrinsicMap", "inputs": inputs}
    if "depth" not in lora:
        lamp = {"azimuth": 60.0, "elevation": 30.0, "ambient": 0.2}
        graph["8"] = {"class_type": "RelightIntrinsic", "inputs": {"map": ["4", 1], "image": ["3", 0], **lamp}}
        graph["9"] = {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "relit"}}
    return graph
