"""Generate images with a GAN, and their surface normals, depth, albedo or shading with its LoRAs.

    image = G(w)        prediction = G'(w)              (LoRAs trained by gan_pseudo.py, one for each map)

A GAN has no image input: it predicts maps of the images that it generates. Images go to <output_dir>/rgb/, maps to
<output_dir>/<task>/predicted/, and all of them side by side to <output_dir>/sheet.png. w depends on --seed and the
image's number alone. Training uses its own --seed and the next one, so take another here.

    python inference_gan.py --lora runs/gan-normal runs/gan-albedo --num_imgs 16 --output_dir output
"""

import argparse
from pathlib import Path

from generators.args import inference_parser
from utils.cli import above_zero, expand
from utils.errors import InputError, note, run
from utils.inference.output import output_of
from utils.system import environment


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = inference_parser(__doc__)
    add = parser.add_argument
    add("--lora", type=expand, nargs="+", required=True, help="output folders of gan_pseudo.py, or .safetensors")
    add("--num_imgs", type=int, default=16, help="images to generate (16)")
    add("--seed", type=int, default=1000, help="seed of w (1000)")
    args = parser.parse_args(argv)
    above_zero(args, ("num_imgs",))
    args.output = output_of(args)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    from utils.inference.job import describe

    jobs = [describe(lora, "gan", base=args.pretrained_model_name_or_path) for lora in args.lora]
    args.output.check([job.intrinsic for job in jobs])
    if len({job.intrinsic.name for job in jobs}) < len(jobs):
        raise InputError("--lora: two of them predict the same map; their files would have one name")
    if len({job.model for job in jobs}) > 1:
        raise InputError(f"--lora: made for different generators: {', '.join(sorted({job.model for job in jobs}))}")

    import numpy as np
    import torch  # only now: it takes seconds to import, --help should not
    from PIL import Image
    from tqdm import tqdm

    from generators.pixel_prediction import generate, to_tensor
    from generators.stylegan2 import load_gan
    from utils.image_io.files import save_png
    from utils.image_io.panels import sheet, strip
    from utils.inference.prediction import Prediction
    from utils.inference.predictor import pick_device
    from utils.inference.write import write_prediction
    from utils.kinds.alignment import linear_map
    from utils.lora import load_attn_procs
    from utils.system.atomic import make_folder

    environment.settle_inference()
    device, out = pick_device(args.device), Path(args.output_dir)
    painter = load_gan(jobs[0].model).network.to(device)
    networks = []
    for job in jobs:
        gan = load_gan(job.model)
        load_attn_procs(gan.network, job.name)
        networks.append(gan.network.to(device))

    facts = [job.facts for job in jobs]  # outside the loop: it reads the whole file
    make_folder(out / "rgb", "--output_dir")
    rows = []
    for number in tqdm(range(args.num_imgs), desc="generating"):
        w, pixels = generate(painter, args.seed, number, painter)
        stem, image = f"seed{args.seed}-{number:06d}", Image.fromarray(pixels)
        save_png(out / "rgb" / f"{stem}.png", pixels)
        row = [to_tensor(pixels)]
        for job, about, network in zip(jobs, facts, networks, strict=True):
            with torch.inference_mode():
                values = linear_map(network(w[None].to(device))[0].float().cpu(), job.depth_coding)
            prediction = Prediction(job.intrinsic, values, None, about)
            name = job.intrinsic.name
            write_prediction(prediction, out / name, f"{stem}_{name}.png", args.output, image)
            row.append(job.intrinsic.map_kind.panel(values))
        rows.append(strip(row))
    page = sheet(rows, ["G(w)", *(job.intrinsic.name for job in jobs)])
    save_png(out / "sheet.png", np.asarray(page))
    for line in args.output.said([job.intrinsic for job in jobs]):
        note(line)
    print(f"{args.num_imgs} images in {out / 'rgb'}, with {', '.join(job.intrinsic.name for job in jobs)}")
    print(f"next: open {out / 'sheet.png'}")


if __name__ == "__main__":
    run(main)
