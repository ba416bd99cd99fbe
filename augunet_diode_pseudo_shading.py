"""Shading from Stable Diffusion 2.1 by diffusion (AugUNet of Intrinsic LoRA, arXiv 2311.17137).

The frozen UNet gets InstructPix2Pix's 8-channel conv_in and reads the noisy label next to the image; a LoRA on its
attention layers learns the label's velocity, on a schedule that ends in pure noise (arXiv 2305.08891):

    z0 = s E(label)   z_t = a z0 + sigma eps   v = a eps - sigma z0
    loss = mse( unet([z_t, E(rgb)], t, "shading"), v )         prediction = 25 steps of DPM-Solver++, guidance 3

Labels are sRGB-coded, image = albedo x shading in linear light, so a prediction is shading up to one scale. DIODE
measures none: with --train_data_dir=DIODE/depths validation compares with the labels (val/<split>/label_*). With
ground truth: --train_data_dir=<a folder of the same tree with *_shading.npy, linear>. The paper's recipe:

    accelerate launch augunet_diode_pseudo_shading.py \\
      --pretrained_model_name_or_path=stabilityai/stable-diffusion-2-1 \\
      --train_data_dir=path/to/DIODE/depths --pseudo_root=path/to/pseudo/labels --output_dir=path/to/output \\
      --train_batch_size=4 --dataloader_num_workers=4 --learning_rate=1e-4 --report_to=wandb --lr_warmup_steps=0 \\
      --max_train_steps=50000 --validation_steps=2500 --checkpointing_steps=2500 --rank=8 \\
      --scene_types='outdoor,indoors' --unified_prompt='shading' \\
      --resume_from_checkpoint=latest --seed=1234
"""

from utils.errors import run
from utils.intrinsics import SHADING
from utils.training.args import AUGUNET_REFUSES, parse, settings_of, training_parser
from utils.training.flags import augment_from_flag


def main(argv: list[str] | None = None) -> None:
    # The paper's recipe
    parser = training_parser(__doc__, AUGUNET_REFUSES)
    parser.set_defaults(unified_prompt=SHADING.prompt, max_train_steps=50_000, prediction_type="v_prediction")
    augment_from_flag(parser)
    args = parse(parser, argv)

    from dataloaders.open_data import open_data  # only now: PyTorch takes seconds to import, --help should not
    from utils.base_model.stable_diffusion import load_base, load_donor, widen_conv_in
    from utils.objectives import AugUNet, zero_snr_scheduler
    from utils.training.loop import attach_lora, frozen_dtype, start, train

    settings = settings_of(args)
    accelerator, resume_from = start(settings)

    # Data: images, pseudo labels as targets, ground truth for validation only
    train_set, validation_samples = open_data(args, SHADING)

    # Model: everything frozen but the LoRA
    precision = frozen_dtype(accelerator), args.base_precision
    base = load_base(args.pretrained_model_name_or_path, args.revision, *precision)
    widen_conv_in(base.unet, load_donor(args.augment_from))
    attach_lora(base, args, accelerator)

    # Objective
    prompt, empty_prompt = base.encode_prompt(args.prompt), base.encode_prompt("")
    schedule = zero_snr_scheduler(base.scheduler)
    objective = AugUNet(base.vae, prompt, empty_prompt, schedule, args.noise_offset, augment_from=args.augment_from)

    train(settings, accelerator, resume_from, objective, base, train_set, validation_samples)


if __name__ == "__main__":
    run(main)
