"""Depth from Stable Diffusion 1.5 in a single UNet pass (Intrinsic LoRA, arXiv 2311.17137).

A LoRA on the frozen UNet's attention layers learns to predict the label's latents from the image's:

    loss = mse( unet(s E(rgb), t = T-1, "depth map"), s E(label) )        prediction = D(unet(...) / s)

Labels are linear, inverted depth (near = white), so a prediction is depth up to scale and shift; labels of another
--depth_coding train too, and their predictions are brought back to that. The paper's command:

    accelerate launch sd_single_diode_pseudo_depth.py \\
      --pretrained_model_name_or_path=runwayml/stable-diffusion-v1-5 \\
      --train_data_dir=path/to/DIODE/depths --pseudo_root=path/to/pseudo/labels --output_dir=path/to/output \\
      --train_batch_size=4 --dataloader_num_workers=4 --learning_rate=1e-4 --report_to=wandb --lr_warmup_steps=0 \\
      --max_train_steps=20000 --validation_steps=2500 --checkpointing_steps=2500 --rank=8 \\
      --scene_types='outdoor,indoors' --num_train_imgs=4000 --unified_prompt='depth map' \\
      --resume_from_checkpoint=latest --seed=1234
"""

from utils.errors import run
from utils.intrinsics import DEPTH, depth_coded
from utils.training.args import SINGLE_STEP_REFUSES, parse, settings_of, training_parser
from utils.training.flags import depth_coding_flag


def main(argv: list[str] | None = None) -> None:
    # The paper's recipe
    parser = training_parser(__doc__, SINGLE_STEP_REFUSES)
    parser.set_defaults(unified_prompt=DEPTH.prompt, max_train_steps=20_000, num_train_imgs=4_000)
    depth_coding_flag(parser)
    args = parse(parser, argv)

    from dataloaders.open_data import open_data  # only now: PyTorch takes seconds to import, --help should not
    from utils.base_model.families import open_base
    from utils.objectives import SingleStep
    from utils.training.loop import attach_lora, frozen_dtype, start, train

    settings = settings_of(args)
    accelerator, resume_from = start(settings)

    # Data: images, pseudo labels as targets, ground truth for validation only
    train_set, validation_samples = open_data(args, depth_coded(args.depth_coding))

    # Model: everything frozen but the LoRA
    precision = frozen_dtype(accelerator), args.base_precision
    base = open_base(args.pretrained_model_name_or_path, args.revision, args.resolution, *precision)
    attach_lora(base, args, accelerator)

    # Objective
    objective = SingleStep(base, base.encode_prompt(args.prompt), base.timestep(args.timestep))

    train(settings, accelerator, resume_from, objective, base, train_set, validation_samples)


if __name__ == "__main__":
    run(main)
