"""Shading from Stable Diffusion 1.5 in a single UNet pass (Intrinsic LoRA, arXiv 2311.17137).

A LoRA on the frozen UNet's attention layers learns to draw the label's latents from the picture's:

    loss = mse( unet(s E(rgb), t = T-1, "shading"), s E(label) )        prediction = D(unet(...) / s)

Labels are sRGB-coded, picture = albedo x shading in linear light, so a drawing is shading up to one scale. DIODE
measures none: with --train_data_dir=DIODE/depths validation compares with the labels (val/<split>/label_*). Truth,
where there is any: --train_data_dir=<a folder of the same tree with *_shading.npy, linear>. The paper's recipe:

    accelerate launch sd_single_diode_pseudo_shading.py \\
      --pretrained_model_name_or_path=runwayml/stable-diffusion-v1-5 \\
      --train_data_dir=path/to/DIODE/depths --pseudo_root=path/to/pseudo/labels --output_dir=path/to/output \\
      --train_batch_size=4 --dataloader_num_workers=4 --learning_rate=1e-4 --report_to=wandb --lr_warmup_steps=0 \\
      --max_train_steps=20000 --validation_steps=2500 --checkpointing_steps=2500 --rank=8 \\
      --scene_types='outdoor,indoors' --num_train_imgs=4000 --unified_prompt='shading' \\
      --resume_from_checkpoint=latest --seed=1234
"""

from dataloaders.diode_colour import DiodeShading
from dataloaders.open_data import open_data
from utils.errors import run
from utils.lora import add_lora, load_attn_procs
from utils.maps.pictures import colour_picture, nothing_measured
from utils.metrics.scores import against_label, score_colour
from utils.models import load_base
from utils.objectives import SingleStep
from utils.training.args import parse, training_parser
from utils.training.loop import frozen_dtype, start, train


def main(argv: list[str] | None = None) -> None:
    # The paper's recipe
    parser = training_parser(__doc__)
    parser.set_defaults(unified_prompt="shading", max_train_steps=20_000, num_train_imgs=4_000)
    args = parse(
        parser,
        argv,
        refuse={
            "noise_offset": "a single step draws no noise; leave it out",
            "prediction_type": "a single step predicts the label's latents, whatever the base predicts; leave it out",
        },
    )
    accelerator = start(args)

    # Data: pictures, pseudo labels as targets, ground truth for validation only
    train_set, validation_samples = open_data(args, DiodeShading)

    # Model: everything frozen but the LoRA
    base = load_base(args.pretrained_model_name_or_path, args.revision)
    base.to(accelerator.device, frozen_dtype(accelerator))
    add_lora(base.unet, args.rank, args.seed)
    if args.lora_path:
        load_attn_procs(base.unet, args.lora_path)

    # Objective
    timestep = base.timestep(args.timestep)
    objective = SingleStep(base.vae, base.encode_prompt(args.prompt), timestep)

    measured = train_set.measured
    train(
        args,
        accelerator,
        objective,
        base.unet,
        train_set,
        validation_samples,
        score=score_colour if measured else against_label(score_colour),
        pictures=(colour_picture if measured else nothing_measured, lambda drawn: drawn),
        metadata={
            "task": "shading",
            "method": "single-step",
            "base_model": base.name,
            "revision": args.revision,
            "timestep": timestep,
            "colour_space": "sRGB-coded, up to one scale; scored in linear light",
            "validated_against": train_set.reference,
        },
    )


if __name__ == "__main__":
    run(main)
