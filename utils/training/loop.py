"""The only training loop, the same for every intrinsic and method: it calls the objective's `loss` and `predict`."""

import math
import time
from argparse import Namespace
from collections.abc import Mapping
from itertools import count
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from utils import __version__
from utils.base_model import Frozen
from utils.errors import InputError, note
from utils.inference.job import BASES, SCRIPTS
from utils.lora import add_lora, load_attn_procs, save_lora
from utils.noise import generators
from utils.objectives import Objective
from utils.system import atomic, environment, processes, provenance, signals
from utils.system.compute import compile_unet, warn_of_slow_bf16
from utils.training import checkpoint, tracking, upload
from utils.training.cache import READERS, ByShape, CachedLatents, cached_or_not
from utils.training.data import BucketBatches, EndlessBatches, TrainingSet, describe_buckets, masked_share
from utils.training.settings import Settings
from utils.training.state import TrainingState, shared_settings
from utils.training.validation import Samples, Validation


def start(settings: Settings) -> tuple[Accelerator, Path | None]:
    """Make the output folder, set the process-wide switches, and return the run's accelerator and the checkpoint that
    it continues from, if any.

    Raises InputError where the folder, the checkpoint, the precision or a tracker cannot be used, and where the
    environment asks for another training than the flags (`environment`).
    """
    output_dir, accumulation = settings.output_dir, settings.gradient_accumulation_steps
    resume_from = checkpoint.choose(output_dir, settings.resume_from_checkpoint)  # fail before anything is loaded
    environment.refuse_unsupported(settings.allow_tf32)
    environment.check_accumulation(accumulation, "gradient_accumulation_steps" in settings.typed)
    environment.note_dynamo(settings.compile)
    precision = environment.mixed_precision(settings.mixed_precision)
    try:
        accelerator = Accelerator(
            cpu=processes.use_cpu(),
            # a plugin: the plain argument gives way to an environment variable
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation),
            mixed_precision=precision,
            dynamo_backend="no",  # else the variable's, which also turns TF32 on; --compile keeps names and weights
            log_with=list(settings.trackers) or None,
            project_config=ProjectConfiguration(str(output_dir), str(output_dir / settings.logging_dir)),
        )
    except (ValueError, ImportError) as error:  # fp16 without a GPU, a tracker that is not installed
        flags = f"--mixed_precision={settings.mixed_precision} --report_to={','.join(settings.trackers)}"
        raise InputError(f"{flags}: {error}") from None
    processes.keep_process_group()
    check_accelerator(accelerator, settings, precision)
    environment.set_tf32(settings.allow_tf32)
    if settings.allow_tf32 and accelerator.device.type != "cuda":
        note(f"--allow_tf32 has no effect on {accelerator.device.type}: TF32 is a feature of NVIDIA GPUs")
    set_seed(settings.seed)
    transformers.utils.logging.disable_progress_bar()  # one bar: the training's
    atomic.make_folder(output_dir, "--output_dir")
    if accelerator.is_main_process:
        atomic.lock(output_dir)
    warn_of_slow_bf16(frozen_dtype(accelerator), accelerator.device.type, "--mixed_precision no")
    return accelerator, resume_from


def check_accelerator(accelerator: Accelerator, settings: Settings, precision: str) -> None:
    """InputError where the accelerator differs from what the flags ask for, whatever the reason."""
    kind, plugin = accelerator.distributed_type.value, accelerator.state.dynamo_plugin
    pairs = {  # asked for, in use
        "mixed precision": (precision, accelerator.mixed_precision),
        "gradient accumulation steps": (settings.gradient_accumulation_steps, accelerator.gradient_accumulation_steps),
        "dynamo backend": ("NO", plugin.backend.value.upper()),
    }
    for name, (asked, actual) in pairs.items():
        if asked != actual:
            raise InputError(
                f"accelerate: {name} is {actual}, the flags ask for {asked}; unset ACCELERATE_* variables"
            )
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise InputError(f"accelerate: {kind} is not supported; set distributed_type to NO or MULTI_GPU in its file")


def frozen_dtype(accelerator: Accelerator) -> torch.dtype:
    """The dtype of the frozen parts: that of mixed precision, or fp32."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


def attach_lora(base: Frozen, args: Namespace, accelerator: Accelerator) -> None:
    """Move the frozen base to the device and add the LoRA to it: a new one, or that of --lora_path."""
    base.to(accelerator.device, frozen_dtype(accelerator))
    add_lora(base.network, args.rank, args.seed, args.lora_targets.split(","))
    if args.lora_path:
        load_attn_procs(base.network, args.lora_path)


def train(
    settings: Settings,
    accelerator: Accelerator,
    resume_from: Path | None,
    objective: Objective,
    base: Frozen,
    train_set: TrainingSet,
    validation_samples: Samples,
) -> None:
    """Train the LoRA on `base.network` and write it into the output folder.

    A run that is stopped early (a signal, --max_hours) leaves a checkpoint, and no LoRA in the folder itself.

    accelerator, resume_from: what `start` returned.
    validation_samples: split -> items, see `Validation`.
    """
    main, output_dir = accelerator.is_main_process, settings.output_dir
    batch_size, seed = settings.train_batch_size, settings.seed
    signals.listen()  # from here on a signal ends the run cleanly; before, Ctrl-C ends loading immediately
    for text in train_set.notes:
        note(text)
    if train_set.masked:
        note(masked_share(train_set, 2 ** (len(objective.vae.config.block_out_channels) - 1), seed))

    # Trained state: LoRA, optimiser, learning rate; and the settings that a resumed run is compared with
    if settings.gradient_checkpointing:
        base.network.enable_gradient_checkpointing()
    if settings.compile:
        compile_unet(base.network, accelerator.device)
    state = TrainingState(settings, accelerator, base.network, len(train_set))
    metadata = lora_header(objective, base, train_set, settings)
    shared = shared_settings(settings, metadata, state.step_samples, accelerator, train_set.fingerprint)
    if resume_from:
        state.load(resume_from, shared, settings.force_resume)
        note(f"resuming from {resume_from} at step {state.step}")
    elif settings.resume_from_checkpoint:
        note(f"no checkpoint in {output_dir} yet; starting from step 0")

    # Records of the run: new, or cut back to the step that it continues from
    sent = begin_records(settings, state.step if resume_from else None) if main else set()
    config = dict(settings.flags) | metadata | state.counts | {"training_images": len(train_set)}
    config |= {"training_data": train_set.fingerprint, "versions": provenance.versions(), **provenance.git_state()}
    config["validation_images"] = {split: len(items) for split, items in validation_samples.items()}
    resumed_at = state.step if resume_from else -1 if settings.resume_from_checkpoint else None
    tracking.start_trackers(accelerator, output_dir, config, settings, resumed_at, sent)

    # Data: latents from the cache, or images, in an endless stream from which each step reads its own samples
    samples, vae_home = latents_or_images(settings, accelerator, train_set, objective.vae)
    share = (batch_size, seed, accelerator.process_index, accelerator.num_processes, state.seen)
    if train_set.whole:
        batches: EndlessBatches = BucketBatches(train_set.shapes, state.step_samples, *share)
        note(describe_buckets(train_set.shapes, state.step_samples))
    else:
        batches = EndlessBatches(len(train_set), *share)
    loader = DataLoader(
        samples, batch_sampler=batches, num_workers=settings.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda", worker_init_fn=signals.ignore,
    )  # fmt: skip
    validation = Validation(
        accelerator, objective, validation_samples, train_set.intrinsic, train_set.score, train_set.measured,
        output_dir, seed + 100, batch_size, settings.best_metric, vae_home,
    )  # fmt: skip
    uploads = upload.begin(settings, metadata, validation.protocol) if main else None

    if state.step_samples > len(train_set):
        note(
            f"a step has {state.step_samples} images and the training set {len(train_set)}: it sees some of them twice"
        )
    if main:
        print(summary(state, settings, accelerator, len(train_set), frozen_dtype(accelerator)))
    if validates(settings, state.step, state.max_steps):  # also after a kill that prevented it
        with state.averages.applied():
            validation.run(state.bare_network, state.step)

    # Train
    stopped_by = ""
    deadline = time.monotonic() + settings.max_hours * 3600 if settings.max_hours else math.inf
    bar = tqdm(
        total=state.max_steps, initial=state.step, desc="training", disable=not accelerator.is_local_main_process
    )
    state.network.train()
    losses, stems, since = [], [], time.monotonic()
    for micro_step, batch in zip(count(), loader if state.step < state.max_steps else ()):
        # batch; its noise is a function of the seed and of the samples' places in the stream
        noise = generators(seed, batches.first(micro_step), batch_size)
        tensors = {key: value for key, value in batch.items() if torch.is_tensor(value)}
        inputs = {key: value.to(accelerator.device, non_blocking=True) for key, value in tensors.items()}
        with accelerator.accumulate(state.network):
            # loss
            loss = objective.loss(state.network, inputs, noise)
            losses.append(loss.detach())
            stems.append(batch["stem"])
            # backward
            accelerator.backward(loss)
            if not accelerator.sync_gradients:
                continue
            # clip: a list, because a generator would be empty at its second use; max_grad_norm 0 only measures
            norm = float(accelerator.clip_grad_norm_(state.parameters, settings.max_grad_norm or math.inf))
            # all processes stop at the same step, as soon as one of them is asked to
            stopped_by = "--max_hours" if time.monotonic() > deadline else signals.stop_requested() or ""
            mean_loss, stop = agree(accelerator, torch.stack(losses).mean(), bool(stopped_by))
            # step, unless loss or gradient are not finite; a gradient scaler skips by itself, and has to be called
            usable = math.isfinite(mean_loss) and math.isfinite(norm)
            rate = state.optimizer.param_groups[0]["lr"]
            if usable or accelerator.scaler is not None:
                state.optimizer.step()
            state.optimizer.zero_grad()
            state.step, state.seen = state.step + 1, state.seen + state.step_samples
            if usable and not accelerator.optimizer_step_was_skipped:
                state.schedule.step()
                state.averages.update()

        step = state.step
        last = step >= state.max_steps or stop
        saving = last or step % settings.checkpointing_steps == 0
        validating = validates(settings, step, state.max_steps) and (step >= state.max_steps or not stop)

        # log
        speed = state.step_samples / (time.monotonic() - since)
        values = {"train_loss": mean_loss, "grad_norm": norm, "lr": rate, "samples_per_second": speed}
        values |= {} if usable else {"skipped_updates": state.skipped.total + 1}
        tracking.log_scalars(accelerator, output_dir, values, step, complete=not validating)
        state.skipped.count(step, mean_loss, norm, torch.stack(losses), stems, output_dir)
        bar.update(1)
        bar.set_postfix(loss=f"{mean_loss:.4f}", lr=f"{rate:.1e}", refresh=False)
        losses, stems = [], []

        # save; the best checkpoint so far is spared
        written = None
        if saving:
            header = {**metadata, "steps": step}
            written = state.save(shared, header, settings.checkpoints_total_limit, checkpoint.best_folder(output_dir))

        # validate
        if validating:
            with state.averages.applied():
                validation.run(state.bare_network, step)
        if uploads and written and not last:
            uploads.checkpoint(written, step)
        if last:
            break
        since = time.monotonic()
    bar.close()

    # Finish
    if main and state.step < state.max_steps:
        saved, why = checkpoint.last_good(output_dir), stopped_by or signals.stop_requested() or "another process"
        print(f"stopped after step {state.step} of {state.max_steps} by {why}; saved: {saved} in {output_dir}")
        print("next: run the same command with --resume_from_checkpoint latest")
    elif main:
        with state.averages.applied():
            save_lora(state.bare_network, output_dir, {**metadata, "steps": state.step}, with_bin=has_bin(metadata))
        print(outcome(output_dir, metadata, settings))
    accelerator.end_training()
    if uploads and state.step >= state.max_steps:
        uploads.finish(state.step)
    signals.forget()
    atomic.unlock(output_dir)


def validates(settings: Settings, step: int, max_steps: int) -> bool:
    """True if the LoRA of this step is validated: every `validation_steps`, and the last; 0: never."""
    if not settings.validation_steps or (step == 0 and settings.no_first_validation):
        return False
    return step >= max_steps or step % settings.validation_steps == 0


def begin_records(settings: Settings, step: int | None) -> set[tuple[int, str]]:
    """Remove the unfinished records of an interrupted run. step: of the checkpoint to continue from, if any.

    Returns the (step, scalar) pairs after `step` that the trackers have already received.
    """
    checkpoint.clear(settings.output_dir)
    if settings.resume_from_checkpoint is None:
        tracking.set_aside(settings.output_dir)
        return set()
    sent = tracking.forget_after(settings.output_dir, -1 if step is None else step, settings.validation_steps)
    checkpoint.mark_best(settings.output_dir, settings.best_metric)  # an unknown metric ends the run here
    return sent


def latents_or_images(
    settings: Settings, accelerator: Accelerator, train_set: TrainingSet, vae: AutoencoderKL
) -> tuple[CachedLatents | ByShape | TrainingSet, torch.device]:
    """The training set's cached latents, or the set itself if they are not wanted or cannot be kept; and the device
    that the VAE stays on while the LoRA trains.
    """
    samples: CachedLatents | ByShape | TrainingSet = train_set
    if not settings.no_cache_latents:
        folder = settings.cache_dir or settings.output_dir / "latent_cache"
        place = (accelerator.process_index, accelerator.num_processes)
        typed = "dataloader_num_workers" in settings.typed
        workers = settings.dataloader_num_workers if typed else processes.io_threads(READERS)
        samples = cached_or_not(train_set, vae, folder, workers, *place)
    home = accelerator.device if samples is train_set else torch.device("cpu")
    vae.to(home)
    return samples, home


def agree(accelerator: Accelerator, loss: Tensor, stop: bool) -> tuple[float, bool]:
    """The mean of the processes' losses, and True if any of them has to stop: one exchange for both."""
    mean, stops = accelerator.reduce(torch.stack([loss, loss.new_tensor(float(stop))]), reduction="mean").tolist()
    return mean, stops > 0


def lora_header(objective: Objective, base: Frozen, train_set: TrainingSet, settings: Settings) -> dict[str, object]:
    """The header of the run's LoRA files, without the steps: intrinsic, base model, data and method."""
    key, meaning = train_set.intrinsic.convention
    return {
        "format_version": 1,
        "task": train_set.intrinsic.name,
        "base_model": base.name,
        "revision": base.revision,
        **objective.metadata,
        key: meaning,
        "validated_against": train_set.reference,
        "rank": settings.rank,
        "prompt": settings.prompt,
        "resolution": train_set.resolution,
        "project_version": __version__,
        **({"masked_loss": True} if train_set.masked else {}),
        **({"crop": "none"} if train_set.whole else {}),
        **({"ema_decay": settings.ema_decay} if settings.ema_decay else {}),
        **({"depth_coding": coding} if (coding := train_set.intrinsic.depth_coding) != "linear" else {}),
    }


def summary(
    state: TrainingState, settings: Settings, accelerator: Accelerator, images: int, dtype: torch.dtype
) -> str:
    """One line: data, length, LoRA, and the settings in use that may come from elsewhere than the flags."""
    outside = settings.mixed_precision is None and accelerator.mixed_precision != "no"
    set_by = f" (set by {environment.origin(environment.PRECISION)})" if outside else ""
    lora, everything = state.counts["lora_parameters"], state.counts["all_parameters"]
    return (
        f"{images} training images, {state.step_samples} a step, {state.max_steps} steps; "
        f"LoRA of rank {settings.rank}: {lora:,} parameters, {100 * lora / everything:.2f} % of the network; "
        f"{accelerator.device}, {accelerator.num_processes} process(es), frozen parts in {dtype}; "
        f"mixed precision {accelerator.mixed_precision}{set_by}, "
        f"{accelerator.gradient_accumulation_steps} micro-step(s) a step, "
        f"{'compiled' if settings.compile else 'not compiled'}, TF32 {'on' if settings.allow_tf32 else 'off'}"
    )


def has_bin(metadata: Mapping[str, object]) -> bool:
    """True if the run also writes a .bin, for the paper's line of code. A .bin has no header, so that a reader could
    not know of a depth coding to undo, or of a network that is not a UNet.
    """
    return "depth_coding" not in metadata and metadata["method"] in BASES


def outcome(output_dir: Path, metadata: Mapping[str, object], settings: Settings) -> str:
    """The last lines of a run: its files, and the command that predicts with them."""
    method = str(metadata["method"])
    files = " and .bin" if has_bin(metadata) else ""
    files += ", metrics.jsonl" + (", validation/, best.json" if settings.validation_steps else "")
    images = "" if method == "gan" else " --input_dir path/to/images"  # a GAN reads none
    command = f"python {SCRIPTS[method]} --lora {output_dir}{images} --output_dir output"
    lines = [f"{output_dir}: pytorch_lora_weights.safetensors{files}", f"next: {command}"]
    if "tensorboard" in settings.trackers:
        lines.append(f"      tensorboard --logdir {output_dir / settings.logging_dir}")
    return "\n".join(lines)
