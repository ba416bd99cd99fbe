"""Draw pictures with a GAN, and their surface normals, depth, albedo or shading with its LoRAs.

    picture = G(w)        prediction = G'(w)              (LoRAs that gan_pseudo.py has trained, one for each map)

A GAN reads no picture: what it predicts are maps of what it draws. Pictures go to <output_dir>/rgb/, maps to
<output_dir>/<task>/predicted/, and all side by side to <output_dir>/sheet.png. w depends on --seed and the picture's
number alone; training draws with its own --seed and the next one, so take another here.

    python inference_gan.py --lora runs/gan-normal runs/gan-albedo --num_imgs 16 --output_dir output
"""

import argparse
from pathlib import Path

from utils.cli import Parser, above_zero, expand
from utils.errors import InputError, note, run
from utils.inference.args import generator_flags
from utils.inference.output import output_of
from utils.system import environment


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    generator_flags(parser)
    add = parser.add_argument
    add("--lora", type=expand, nargs="+", required=True, help="output folders of gan_pseudo.py, or .safetensors")
    add("--num_imgs", type=int, default=16, help="pictures to draw (16)")
    add("--seed", type=int, default=1000, help="of w (1000)")
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

    import torch  # only now: it takes seconds to import, --help should not
    from PIL import Image
    from tqdm import tqdm

    from utils.generators.gan_files import load_gan
    from utils.generators.generated import generate, to_tensor
    from utils.image_io.panels import sheet, strip
    from utils.inference.prediction import Prediction
    from utils.inference.predictor import pick_device
    from utils.inference.write import write_prediction
    from utils.kinds.alignment import linear_map
    from utils.lora import load_attn_procs
    from utils.system.atomic import make_folder, save_png

    environment.settle_inference()
    device, out = pick_device(args.device), Path(args.output_dir)
    painter = load_gan(jobs[0].model).network.to(device)
    networks = []
    for job in jobs:
        gan = load_gan(job.model)
        load_attn_procs(gan.network, job.name)
        networks.append(gan.network.to(device))

    facts = [job.facts for job in jobs]  # once: it reads the whole file
    make_folder(out / "rgb", "--output_dir")
    rows = []
    for number in tqdm(range(args.num_imgs), desc="generating"):
        w, pixels = generate(painter, args.seed, number, painter)
        stem, picture = f"seed{args.seed}-{number:06d}", Image.fromarray(pixels)
        save_png(out / "rgb" / f"{stem}.png", pixels)
        row = [to_tensor(pixels)]
        for job, about, network in zip(jobs, facts, networks, strict=True):
            with torch.inference_mode():
                found = linear_map(network(w[None].to(device))[0].float().cpu(), job.depth_coding)
            prediction = Prediction(job.intrinsic, found, None, about)
            name = job.intrinsic.name
            write_prediction(prediction, out / name, f"{stem}_{name}.png", args.output, picture)
            row.append(job.intrinsic.map_kind.panel(found))
        rows.append(strip(row))
    sheet(rows, ["G(w)", *(job.intrinsic.name for job in jobs)]).save(out / "sheet.png")
    for line in args.output.said([job.intrinsic for job in jobs]):
        note(line)
    print(f"{args.num_imgs} pictures in {out / 'rgb'}, with {', '.join(job.intrinsic.name for job in jobs)}")
    print(f"next: open {out / 'sheet.png'}")


if __name__ == "__main__":
    run(main)
