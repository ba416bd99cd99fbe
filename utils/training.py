"""The only training loop. It knows neither task nor method: it calls `objective.loss` and `objective.sample`."""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from utils import __version__, best, checkpoint, durable, hub, processes, provenance, signals, tracking
from utils.batches import EndlessBatches
from utils.compiling import as_written, compile_unet
from utils.errors import InputError, note
from utils.finite import Skipped
from utils.latent_cache import cached_or_not
from utils.latents import NAMES
from utils.lora import lora_parameters, save_lora
from utils.noise import generators
from utils.scores import described
from utils.validation import validate, write_panels

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
    durable.make_folder(output_dir, "--output_dir")
    if accelerator.is_main_process:
        durable.lock(output_dir)
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
    validation_samples, score, pictures: see `utils.validation.validate`.
    metadata: task, method, base model and so on, written into every LoRA file.
    """
    output_dir, main = Path(args.output_dir), accelerator.is_main_process
    if not len(train_set):
        raise InputError(
            f"no training images under {args.train_data_dir or args.manifest}: {'; '.join(train_set.notes)}"
        )
    for text in train_set.notes:
        note(text)

    # optimiser and schedule
    accumulation = args.gradient_accumulation_steps
    step_samples = args.train_batch_size * accumulation * accelerator.num_processes
    max_steps = args.max_train_steps or math.ceil(args.num_train_epochs * len(train_set) / step_samples)
    parameters = lora_parameters(unet)
    optimizer = make_optimizer(args, parameters, step_samples, fused=accelerator.scaler is None)
    # diffusers' "constant" ignores a warm-up without a word
    kind = "constant_with_warmup" if args.lr_scheduler == "constant" and args.lr_warmup_steps else args.lr_scheduler
    schedule = get_scheduler(kind, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=max_steps)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if args.compile:
        compile_unet(unet, accelerator.device)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    bare_unet = accelerator.unwrap_model(unet)

    # resume
    skipped = Skipped(args.max_nonfinite)
    stateful = {"optimizer": optimizer, "schedule": schedule, "skipped": skipped}
    if accelerator.scaler is not None:
        stateful["scaler"] = accelerator.scaler
    metadata = {"format_version": 1, **metadata, "rank": args.rank, "prompt": args.prompt}
    metadata |= {"resolution": args.resolution, "project_version": __version__}
    settings = {key: metadata[key] for key in ("task", "method", "base_model", "rank", "prompt", "resolution")}
    settings |= {
        "timestep": metadata.get("timestep"),
        "seed": args.seed,
        "images per step": step_samples,
        "training data": train_set.fingerprint,
    }
    settings |= {name: getattr(args, name) for name in checkpoint.FREE} | {"processes": accelerator.num_processes}
    base_lrs = schedule.base_lrs
    sent: set[tuple[int, str]] = set()
    step, seen, source, resumed_at = 0, 0, args.checkpoint, None
    if source:
        step, seen = checkpoint.load(source, bare_unet, stateful, settings, args.force_resume)
        for group, lr, factor in zip(optimizer.param_groups, base_lrs, schedule.lr_lambdas):
            group["lr"] = lr * factor(schedule.last_epoch)  # this run's flag, not the checkpoint's
        schedule.base_lrs = base_lrs
        note(f"resuming from {source} at step {step}")
    elif args.resume_from_checkpoint:
        note(f"no checkpoint in {output_dir} yet; starting from step 0")
    if args.resume_from_checkpoint:
        resumed_at = step if source else -1
    if main:
        checkpoint.clear(output_dir)
        if resumed_at is None:
            tracking.set_aside(output_dir)
        else:
            sent = tracking.forget_after(output_dir, resumed_at, args.validation_steps)
            best.mark_best(output_dir, args.best_metric)  # a metric that is not there ends the run here
    trained, everything = sum(p.numel() for p in parameters), sum(p.numel() for p in bare_unet.parameters())
    config = {name: value for name, value in vars(args).items() if name != "hub_token"} | metadata
    config |= {"lora_parameters": trained, "unet_parameters": everything, "images_per_step": step_samples}
    config |= {"total_steps": max_steps, "training_images": len(train_set), "training_data": settings["training data"]}
    config["validation_images"] = {split: len(items) for split, items in validation_samples.items()}
    config |= {"versions": provenance.versions(), **provenance.git_state()}
    tracking.start_trackers(
        accelerator, output_dir, config, args.tracker_project, args.run_name, args.tags, resumed_at, sent
    )

    # data
    batches = EndlessBatches(
        len(train_set), args.train_batch_size, args.seed, accelerator.process_index, accelerator.num_processes,
        start=seen,
    )  # fmt: skip
    workers = args.dataloader_num_workers
    place = (accelerator.process_index, accelerator.num_processes)
    cache_dir = Path(args.cache_dir or output_dir / "latent_cache")
    samples = (
        train_set if args.no_cache_latents else cached_or_not(train_set, objective.vae, cache_dir, workers, *place)
    )
    resting = "cpu" if samples is not train_set else accelerator.device  # where the VAE is between validations
    objective.vae.to(resting)
    loader = DataLoader(
        samples, batch_sampler=batches, num_workers=workers, pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=signals.ignore,
    )  # fmt: skip

    def report(step: int) -> None:
        if main and not tracking.is_validated(output_dir, step):  # a resumed run may have been
            objective.vae.to(accelerator.device)
            with accelerator.autocast(), as_written():
                scores, panels = validate(
                    objective, bare_unet, validation_samples, score, pictures, accelerator.device,
                    seed=args.seed + 100, batch_size=args.train_batch_size,
                )  # fmt: skip
            objective.vae.to(resting)
            write_panels(panels, output_dir / "validation", step)  # first: the scores say that the panels are there
            tracking.log_scalars(accelerator, output_dir, scores, step, complete=False)
            tracking.log_panels(accelerator, panels, step)
            tracking.log_best(accelerator, best.mark_best(output_dir, args.best_metric), step)
            headline = next(iter(scores), "").rsplit("/")[-1]  # a metric's dictionary begins with the one to watch
            shown = [f"{name[4:]} {value:.3f}" for name, value in scores.items() if name.endswith(f"/{headline}")]
            tqdm.write(f"step {step}: {', '.join(shown)}")
        accelerator.wait_for_everyone()

    def save(step: int) -> Path | None:
        written = None
        if main:
            described = {**metadata, "steps": step}
            limit = args.checkpoints_total_limit
            spare = best.best_folder(output_dir)
            written = checkpoint.save(output_dir, step, seen, bare_unet, stateful, settings, described, limit, spare)
        accelerator.wait_for_everyone()
        return written

    uploads = None
    if args.push_to_hub and main:
        images = max(map(len, validation_samples.values()), default=0)
        protocol = f"{described(score)} Mean over {images} fixed images per split, at {args.resolution} px."
        uploads = hub.Uploads(output_dir, args.hub_model_id, args.hub_token, metadata, protocol)

    # train
    if main:
        print(
            f"{len(train_set)} training images, {step_samples} a step, {max_steps} steps; LoRA of rank {args.rank}: "
            f"{trained:,} parameters, {100 * trained / everything:.2f} % of the UNet; {accelerator.device}, "
            f"{accelerator.num_processes} process(es), frozen parts in {frozen_dtype(accelerator)}"
        )
    if step % args.validation_steps == 0 or step >= max_steps:  # also where a kill came between save and report
        report(step)
    stop_because = ""
    deadline = time.monotonic() + args.max_hours * 3600 if args.max_hours else math.inf
    bar = tqdm(total=max_steps, initial=step, desc="training", disable=not accelerator.is_local_main_process)
    unet.train()
    losses, stems, since = [], [], time.monotonic()
    for micro_step, batch in zip(count(), loader if step < max_steps else ()):
        noise = generators(args.seed, batches.first(micro_step), args.train_batch_size)
        maps = {key: batch[key].to(accelerator.device, non_blocking=True) for key in READ if key in batch}
        with accelerator.accumulate(unet):
            loss = objective.loss(unet, maps, noise)
            losses.append(loss.detach())
            stems.append(batch["stem"])
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                # a list, which a second reader finds full; max_grad_norm 0 only measures
                norm = float(accelerator.clip_grad_norm_(parameters, args.max_grad_norm or math.inf))
                # all processes stop at the same step: when the first of them is asked to
                stop_because = "--max_hours" if time.monotonic() > deadline else signals.asked() or ""
                mean_loss, stop = agree(accelerator, torch.stack(losses).mean(), bool(stop_because))
                usable = math.isfinite(mean_loss) and math.isfinite(norm)
                if usable or accelerator.scaler is not None:  # a scaler skips by itself, and must hear of it
                    optimizer.step()
                optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue

        step, seen = step + 1, seen + step_samples
        rate = optimizer.param_groups[0]["lr"]
        if usable and not accelerator.optimizer_step_was_skipped:
            schedule.step()
        speed = step_samples / (time.monotonic() - since)
        last = step >= max_steps or stop
        saving = last or step % args.checkpointing_steps == 0
        validating = step >= max_steps or (step % args.validation_steps == 0 and not stop)
        values = {"train_loss": mean_loss, "grad_norm": norm, "lr": rate, "samples_per_second": speed}
        values |= {} if usable else {"skipped_updates": skipped.total + 1}
        tracking.log_scalars(accelerator, output_dir, values, step, complete=not validating)
        skipped.count(step, mean_loss, norm, torch.stack(losses), stems, output_dir)
        bar.update(1)
        bar.set_postfix(loss=f"{mean_loss:.4f}", lr=f"{rate:.1e}", refresh=False)
        losses, stems = [], []
        written = save(step) if saving else None
        if validating:
            report(step)
        if uploads and written and not last:
            uploads.checkpoint(written, step)
        if last:
            break
        since = time.monotonic()
    bar.close()

    # finish
    if main and step < max_steps:
        why = stop_because or "another process"
        print(
            f"stopped after step {step} of {max_steps} by {why}; saved: {checkpoint.last_good(output_dir)} in "
            f"{output_dir}; to go on, run the same command with --resume_from_checkpoint latest"
        )
    elif main:
        path = save_lora(bare_unet, output_dir, {**metadata, "steps": step}, with_bin=True)
        print(f"{path}: LoRA after {step} steps")
    accelerator.end_training()
    if uploads and step >= max_steps:
        uploads.finish(step)
    signals.forget()
    durable.unlock(output_dir)


def agree(accelerator: Accelerator, loss: Tensor, stop: bool) -> tuple[float, bool]:
    """Mean of the processes' losses, and whether any of them wants to stop: one exchange for both."""
    mean, wish = accelerator.reduce(torch.stack([loss, loss.new_tensor(float(stop))]), reduction="mean").tolist()
    return mean, wish > 0


def make_optimizer(
    args: argparse.Namespace, parameters: list[nn.Parameter], step_samples: int, fused: bool
) -> torch.optim.Optimizer:
    """AdamW as flagged; --scale_lr multiplies the learning rate by the number of images in a step.

    fused: one kernel for all parameters; not with a gradient scaler, whose skipped updates accelerate would not see.
    """
    kind = partial(torch.optim.AdamW, fused=fused)
    if args.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit as kind
        except ImportError:
            raise InputError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from None
    return kind(
        parameters,
        lr=args.learning_rate * (step_samples if args.scale_lr else 1),
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )
