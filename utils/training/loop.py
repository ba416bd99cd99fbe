"""The only training loop. It knows neither task nor method: it calls `objective.loss` and `objective.sample`."""

import argparse
import math
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from utils.errors import InputError, note
from utils.hub import upload
from utils.latents import NAMES
from utils.lora import save_lora
from utils.noise import generators
from utils.system import atomic, processes, provenance, signals
from utils.tracking import trackers
from utils.training import checkpoint
from utils.training.batches import EndlessBatches
from utils.training.latent_cache import cached_or_not
from utils.training.state import TrainingState
from utils.training.validation import Reports

READ = ("rgb", "target", *NAMES)  # what of a batch a loss may read


def start(args: argparse.Namespace) -> Accelerator:
    """The accelerator of this run, with the output folder made and the process-wide switches set."""
    processes.start_missing()
    output_dir = Path(args.output_dir)
    args.checkpoint = checkpoint.choose(output_dir, args.resume_from_checkpoint)  # fail before anything is loaded
    try:
        accelerator = Accelerator(
            cpu=processes.use_cpu(),
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            mixed_precision=args.mixed_precision,
            log_with=args.trackers or None,
            project_config=ProjectConfiguration(str(output_dir), logging_dir=str(output_dir / args.logging_dir)),
        )
    except (ValueError, ImportError) as error:  # fp16 without a GPU, a tracker that is not installed
        raise InputError(f"--mixed_precision={args.mixed_precision} --report_to={args.report_to}: {error}") from None
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    set_seed(args.seed)
    transformers.utils.logging.disable_progress_bar()  # one bar: the training's
    atomic.make_folder(output_dir, "--output_dir")
    if accelerator.is_main_process:
        atomic.lock(output_dir)
    signals.listen()
    return accelerator


def frozen_dtype(accelerator: Accelerator) -> torch.dtype:
    """What the frozen parts are kept in: the mixed-precision dtype, or fp32."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def train(
    args: argparse.Namespace,
    accelerator: Accelerator,
    objective,
    unet: nn.Module,
    train_set: Dataset,
    validation_samples: dict[str, list[dict]],
    score: Callable[[Tensor, Tensor, Tensor], dict[str, float] | None],
    pictures: tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]],
    metadata: dict[str, object],
) -> None:
    """Train the LoRA on `unet`'s attention layers and write it into `args.output_dir`.

    A run that is asked to stop (a signal, --max_hours) leaves a checkpoint and no LoRA in `args.output_dir` itself.

    objective: has loss(unet, batch, noise) -> scalar, sample(unet, rgb, noise) -> (B,3,H,W), and the frozen vae.
    train_set: items with rgb and target; its `notes` are printed, its `fingerprint` guards a resumed run.
    validation_samples, score, pictures: see `utils.training.validation.validate`.
    metadata: task, method, base model and so on, written into every LoRA file.
    """
    main = accelerator.is_main_process
    if not len(train_set):
        where = args.train_data_dir or args.manifest
        raise InputError(f"no training images under {where}: {'; '.join(train_set.notes)}")
    for text in train_set.notes:
        note(text)

    # optimiser and schedule, from the start or from a checkpoint
    state = TrainingState(args, accelerator, unet, train_set, metadata)
    resumed_at, sent = state.resume()
    max_steps, output_dir = state.max_steps, state.output_dir
    config = {name: value for name, value in vars(args).items() if name != "hub_token"} | state.metadata
    config |= state.counts | {"training_images": len(train_set), "training_data": state.settings["training data"]}
    config["validation_images"] = {split: len(items) for split, items in validation_samples.items()}
    config |= {"versions": provenance.versions(), **provenance.git_state()}
    trackers.start_trackers(
        accelerator, output_dir, config, args.tracker_project, args.run_name, args.tags, resumed_at, sent
    )

    # data
    samples = maybe_cached(args, accelerator, train_set, objective.vae)
    resting = "cpu" if samples is not train_set else accelerator.device  # where the VAE is between validations
    objective.vae.to(resting)
    batches = EndlessBatches(
        len(train_set), args.train_batch_size, args.seed, accelerator.process_index, accelerator.num_processes,
        start=state.seen,
    )  # fmt: skip
    loader = DataLoader(
        samples, batch_sampler=batches, num_workers=args.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda", worker_init_fn=signals.ignore,
    )  # fmt: skip

    reports = Reports(state, objective, validation_samples, score, pictures, resting)
    uploads = None
    if args.push_to_hub and main:
        uploads = upload.Uploads(output_dir, args.hub_model_id, args.hub_token, state.metadata, reports.protocol)

    # train
    if main:
        print(
            f"{len(train_set)} training images, {state.step_samples} a step, {max_steps} steps; "
            f"LoRA of rank {args.rank}: {config['lora_parameters']:,} parameters, "
            f"{100 * config['lora_parameters'] / config['unet_parameters']:.2f} % of the UNet; {accelerator.device}, "
            f"{accelerator.num_processes} process(es), frozen parts in {frozen_dtype(accelerator)}"
        )
    if state.step % args.validation_steps == 0 or state.step >= max_steps:  # also where a kill came before a report
        reports.validate()
    stop_because = ""
    deadline = time.monotonic() + args.max_hours * 3600 if args.max_hours else math.inf
    bar = tqdm(total=max_steps, initial=state.step, desc="training", disable=not accelerator.is_local_main_process)
    state.unet.train()
    losses, stems, since = [], [], time.monotonic()
    for micro_step, batch in zip(count(), loader if state.step < max_steps else ()):
        noise = generators(args.seed, batches.first(micro_step), args.train_batch_size)
        maps = {key: batch[key].to(accelerator.device, non_blocking=True) for key in READ if key in batch}
        with accelerator.accumulate(state.unet):
            loss = objective.loss(state.unet, maps, noise)
            losses.append(loss.detach())
            stems.append(batch["stem"])
            accelerator.backward(loss)
            if not accelerator.sync_gradients:
                continue
            # a list, which a second reader finds full; max_grad_norm 0 only measures
            norm = float(accelerator.clip_grad_norm_(state.parameters, args.max_grad_norm or math.inf))
            # all processes stop at the same step: when the first of them is asked to
            stop_because = "--max_hours" if time.monotonic() > deadline else signals.asked() or ""
            mean_loss, stop = agree(accelerator, torch.stack(losses).mean(), bool(stop_because))
            usable, rate = math.isfinite(mean_loss) and math.isfinite(norm), state.optimizer.param_groups[0]["lr"]
            state.update(usable)

        step = state.step
        speed = state.step_samples / (time.monotonic() - since)
        last = step >= max_steps or stop
        saving = last or step % args.checkpointing_steps == 0
        validating = step >= max_steps or (step % args.validation_steps == 0 and not stop)
        values = {"train_loss": mean_loss, "grad_norm": norm, "lr": rate, "samples_per_second": speed}
        values |= {} if usable else {"skipped_updates": state.skipped.total + 1}
        trackers.log_scalars(accelerator, output_dir, values, step, complete=not validating)
        state.skipped.count(step, mean_loss, norm, torch.stack(losses), stems, output_dir)
        bar.update(1)
        bar.set_postfix(loss=f"{mean_loss:.4f}", lr=f"{rate:.1e}", refresh=False)
        losses, stems = [], []
        written = state.save() if saving else None
        if validating:
            reports.validate()
        if uploads and written and not last:
            uploads.checkpoint(written, step)
        if last:
            break
        since = time.monotonic()
    bar.close()

    # finish
    if main and state.step < max_steps:
        why = stop_because or "another process"
        print(
            f"stopped after step {state.step} of {max_steps} by {why}; saved: {checkpoint.last_good(output_dir)} in "
            f"{output_dir}; to go on, run the same command with --resume_from_checkpoint latest"
        )
    elif main:
        path = save_lora(state.bare_unet, output_dir, state.described, with_bin=True)
        print(f"{path}: LoRA after {state.step} steps")
    accelerator.end_training()
    if uploads and state.step >= max_steps:
        uploads.finish(state.step)
    signals.forget()
    atomic.unlock(output_dir)


def maybe_cached(args: argparse.Namespace, accelerator: Accelerator, train_set, vae: nn.Module) -> Dataset:
    """The training set's latents, or itself where they are not wanted or cannot be kept."""
    if args.no_cache_latents:
        return train_set
    folder = Path(args.cache_dir or Path(args.output_dir) / "latent_cache")
    place = (accelerator.process_index, accelerator.num_processes)
    return cached_or_not(train_set, vae, folder, args.dataloader_num_workers, *place)


def agree(accelerator: Accelerator, loss: Tensor, stop: bool) -> tuple[float, bool]:
    """Mean of the processes' losses, and whether any of them wants to stop: one exchange for both."""
    mean, wish = accelerator.reduce(torch.stack([loss, loss.new_tensor(float(stop))]), reduction="mean").tolist()
    return mean, wish > 0
