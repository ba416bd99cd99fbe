"""Normals, depth, albedo or shading from a GAN: a LoRA on StyleGAN2's affine layers (arXiv 2311.17137, section 3).

A GAN has no image input. The image is G(w) for a random point w of its latent space, a teacher labels it, and the LoRA
learns

    loss = mse( G'(w), label )        prediction = G'(w)

where G' is G with the LoRA. Validation compares with the teacher's labels of other images. On the toy generator:

    python gan_pseudo.py --task=normal \\
      --pretrained_model_name_or_path=miniworld/mini-gan --teacher=miniworld/mini-teacher \\
      --output_dir=runs/gan-normal --report_to=none --resume_from_checkpoint=latest
"""

from generators.args import gan_parser, parse_gan
from utils.errors import run
from utils.training.args import settings_of


def main(argv: list[str] | None = None) -> None:
    args = parse_gan(gan_parser(__doc__), argv)

    import torch  # only now: PyTorch takes seconds to import, --help should not

    from generators.pixel_prediction import Generated, PixelPrediction, digest
    from generators.stylegan2 import load_gan
    from utils.intrinsics import INTRINSICS
    from utils.labels.teachers import load_teacher
    from utils.lora import add_lora, load_attn_procs
    from utils.training.loop import start, train

    settings = settings_of(args)
    accelerator, resume_from = start(settings)

    # Data: generated images, labelled by the teacher; others to validate on
    gan = load_gan(args.pretrained_model_name_or_path)
    gan.network.to(accelerator.device)
    painter = load_gan(args.pictures_from).network.to(accelerator.device) if args.pictures_from else gan.network
    teacher = load_teacher(args.task, args.teacher, None, accelerator.device, torch.float32)

    def generated(count: int, seed: int) -> Generated:
        return Generated(INTRINSICS[args.task], painter, teacher, count, seed, gan.network)

    train_set, unseen = generated(args.num_train_imgs, args.seed), generated(args.num_val_imgs, args.seed + 1)

    train_set.with_truth = False  # its items are trained on

    # Model: everything frozen but the LoRA
    add_lora(gan.network, args.rank, args.seed, (args.lora_targets,))
    if args.lora_path:
        load_attn_procs(gan.network, args.lora_path)

    samples = [unseen[index] for index in range(len(unseen))]
    objective = PixelPrediction({digest(sample["rgb"]): sample["w"] for sample in samples})
    train(settings, accelerator, resume_from, objective, gan, train_set, {"unseen": samples})


if __name__ == "__main__":
    run(main)
