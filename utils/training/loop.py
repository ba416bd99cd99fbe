"""The only training loop. It knows neither intrinsic nor method: it calls `objective.loss` and `objective.predict`."""

import math
import time
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

from utils.errors import InputError, note
from utils.hub import upload
from utils.latents import NAMES
from utils.lora import save_lora
from utils.models import Frozen
from utils.noise import generators
from utils.objectives import Objective
from utils.system import atomic, environment, processes, provenance, signals
from utils.system.compiling import compile_unet
from utils.system.precision import warn_of_slow_bf16
from utils.tracking import metrics_file, trackers
from utils.training import best, checkpoint, masks
from utils.training.batches import BucketBatches, EndlessBatches, described
from utils.training.latent_cache import CachedLatents, cached_or_not
from utils.training.messages import describe, has_bin, outcome, summary
from utils.training.settings import RunSettings, Settings, validates
from utils.training.shapes import ByShape
from utils.training.state import TrainingState, shared_settings
from utils.training.training_set import TrainingSet
from utils.training.validation import Samples, Validation

READ = ("rgb", "target", "mask", "w", "rgb_tokens", "target_tokens", *NAMES)  # what of a batch a loss may read


def start(settings: Settings) -> tuple[Accelerator, Path | None]:
    """The accelerator of this run, with the output folder made and the process-wide switches set; and the checkpoint
    that it goes on from, if any.

    Raises InputError where the folder, the checkpoint, the precision or a tracker cannot be used, and where something
    else than the flags asks for another training (`environment`).
    """
    run, tracking = settings.run, settings.tracking
    resume_from = checkpoint.choose(run.output_dir, run.resume_from_checkpoint)  # fail before anything is loaded
    environment.refuse_unsupported(run.allow_tf32)
    environment.check_accumulation(run.gradient_accumulation_steps, "gradient_accumulation_steps" in run.typed)
    environment.note_dynamo(run.compile)
    precision = environment.mixed_precision(run.mixed_precision)
    try:
        accelerator = Accelerator(
            cpu=processes.use_cpu(),
            # a plugin: the plain argument gives way to an environment variable
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=run.gradient_accumulation_steps),
            mixed_precision=precision,
            dynamo_backend="no",  # else the variable's, which also turns TF32 on; --compile keeps names and weights
            log_with=list(tracking.trackers) or None,
            project_config=ProjectConfiguration(str(run.output_dir), str(run.output_dir / tracking.logging_dir)),
        )
    except (ValueError, ImportError) as error:  # fp16 without a GPU, a tracker that is not installed
        wanted = f"--mixed_precision={run.mixed_precision} --report_to={','.join(tracking.trackers)}"
        raise InputError(f"{wanted}: {error}") from None
    check_accelerator(accelerator, run, precision)
    environment.set_tf32(run.allow_tf32)
    if run.allow_tf32 and accelerator.device.type != "cuda":
        note(f"--allow_tf32 means nothing on {accelerator.device.type}: TF32 is of NVIDIA GPUs")
    set_seed(run.seed)
    transformers.utils.logging.disable_progress_bar()  # one bar: the training's
    atomic.make_folder(run.output_dir, "--output_dir")
    if accelerator.is_main_process:
        atomic.lock(run.output_dir)
    warn_of_slow_bf16(frozen_dtype(accelerator), accelerator.device.type, "--mixed_precision no")
    return accelerator, resume_from


def check_accelerator(accelerator: Accelerator, run: RunSettings, precision: str) -> None:
    """InputError where accelerate has made something else than was asked for, by whatever way it came to that."""
    kind, plugin = accelerator.distributed_type.value, accelerator.state.dynamo_plugin
    has = {
        "mixed precision": (precision, accelerator.mixed_precision),
        "gradient accumulation steps": (run.gradient_accumulation_steps, accelerator.gradient_accumulation_steps),
        "dynamo backend": ("NO", plugin.backend.value.upper()),
    }
    for name, (asked, found) in has.items():
        if asked != found:
            raise InputError(f"accelerate: {name} is {found}, the flags ask for {asked}; unset ACCELERATE_* variables")
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise InputError(f"accelerate: {kind} is not supported; set distributed_type to NO or MULTI_GPU in its file")


def frozen_dtype(accelerator: Accelerator) -> torch.dtype:
    """What the frozen parts are kept in: the mixed-precision dtype, or fp32."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)


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
    run, main = settings.run, accelerator.is_main_process
    output_dir = run.output_dir
    signals.listen()  # from here on a signal ends the run well; before, Ctrl-C ends loading at once
    for text in train_set.notes:
        note(text)
    if train_set.masked:
        assert objective.vae is not None  # whose cells are masked
        note(masks.share(train_set, 2 ** (len(objective.vae.config.block_out_channels) - 1), run.seed))

    # What trains: LoRA, optimiser, learning rate; and what a checkpoint of it shares with a run that goes on from it
    if run.gradient_checkpointing:
        base.network.enable_gradient_checkpointing()
    if run.compile:
        compile_unet(base.network, accelerator.device)
    state = TrainingState(settings, accelerator, base.network, len(train_set))
    metadata = describe(objective, base, train_set, run)
    shared = shared_settings(settings, metadata, state.step_samples, accelerator, train_set.fingerprint)
    if resume_from:
        state.load(resume_from, shared, run.force_resume)
        note(f"resuming from {resume_from} at step {state.step}")
    elif run.resume_from_checkpoint:
        note(f"no checkpoint in {output_dir} yet; starting from step 0")

    # The run's records: cut back to where it goes on, or begun
    sent = begin_records(run, state.step if resume_from else None) if main else set()
    config = dict(settings.tracking.flags) | metadata | state.counts | {"training_images": len(train_set)}
    config |= {"training_data": train_set.fingerprint, "versions": provenance.versions(), **provenance.git_state()}
    config["validation_images"] = {split: len(items) for split, items in validation_samples.items()}
    resumed_at = state.step if resume_from else -1 if run.resume_from_checkpoint else None
    trackers.start_trackers(accelerator, output_dir, config, settings.tracking, resumed_at, sent)

    # Data: latents from the cache, or images, in an endless stream of which each step reads its own part
    samples, vae_home = latents_or_images(run, accelerator, train_set, objective.vae)
    share = (run.train_batch_size, run.seed, accelerator.process_index, accelerator.num_processes, state.seen)
    if train_set.whole:
        batches: EndlessBatches = BucketBatches(train_set.shapes, state.step_samples, *share)
        note(described(train_set.shapes, state.step_samples))
    else:
        batches = EndlessBatches(len(train_set), *share)
    loader = DataLoader(
        samples, batch_sampler=batches, num_workers=run.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda", worker_init_fn=signals.ignore,
    )  # fmt: skip
    validation = Validation(
        accelerator, objective, validation_samples, train_set.intrinsic, train_set.score, train_set.measured,
        output_dir, run.seed + 100, run.train_batch_size, run.best_metric, vae_home,
    )  # fmt: skip
    uploads = upload.begin(settings.tracking, output_dir, metadata, validation.protocol) if main else None

    if state.step_samples > len(train_set):
        note(
            f"a step has {state.step_samples} images and the training set {len(train_set)}: it sees some of them twice"
        )
    if main:
        print(summary(state, run, accelerator, len(train_set), frozen_dtype(accelerator)))
    if validates(run, state.step, state.max_steps):  # also where a kill came before it
        with state.averages.applied():
            validation.run(state.bare_network, state.step)

    # Train
    stopped_by = ""
    deadline = time.monotonic() + run.max_hours * 3600 if run.max_hours else math.inf
    bar = tqdm(
        total=state.max_steps, initial=state.step, desc="training", disable=not accelerator.is_local_main_process
    )
    state.network.train()
    losses, stems, since = [], [], time.monotonic()
    for micro_step, batch in zip(count(), loader if state.step < state.max_steps else ()):
        # batch; its noise is a function of the seed and of the samples' places in the stream
        noise = generators(run.seed, batches.first(micro_step), run.train_batch_size)
        inputs = {key: batch[key].to(accelerator.device, non_blocking=True) for key in READ if key in batch}
        with accelerator.accumulate(state.network):
            # loss
            loss = objective.loss(state.network, inputs, noise)
            losses.append(loss.detach())
            stems.append(batch["stem"])
            # backward
            accelerator.backward(loss)
            if not accelerator.sync_gradients:
                continue
            # clip: a list, which a second reader finds full; max_grad_norm 0 only measures
            norm = float(accelerator.clip_grad_norm_(state.parameters, settings.optimizer.max_grad_norm or math.inf))
            # all processes stop at the same step: when the first of them is asked to
            stopped_by = "--max_hours" if time.monotonic() > deadline else signals.stop_requested() or ""
            mean_loss, stop = agree(accelerator, torch.stack(losses).mean(), bool(stopped_by))
            # step, unless loss or gradient are not finite; a scaler skips by itself, and must hear of it
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
        saving = last or step % run.checkpointing_steps == 0
        validating = validates(run, step, state.max_steps) and (step >= state.max_steps or not stop)

        # log
        speed = state.step_samples / (time.monotonic() - since)
        values = {"train_loss": mean_loss, "grad_norm": norm, "lr": rate, "samples_per_second": speed}
        values |= {} if usable else {"skipped_updates": state.skipped.total + 1}
        trackers.log_scalars(accelerator, output_dir, values, step, complete=not validating)
        state.skipped.count(step, mean_loss, norm, torch.stack(losses), stems, output_dir)
        bar.update(1)
        bar.set_postfix(loss=f"{mean_loss:.4f}", lr=f"{rate:.1e}", refresh=False)
        losses, stems = [], []

        # save; the best checkpoint so far is spared
        written = None
        if saving:
            header = {**metadata, "steps": step}
            written = state.save(shared, header, run.checkpoints_total_limit, best.best_folder(output_dir))

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


def begin_records(run: RunSettings, step: int | None) -> set[tuple[int, str]]:
    """Clear away what an interrupted run left half done. Returns the (step, scalar) that the trackers already have of
    the steps after `step`, the checkpoint's; None: there is none.
    """
    checkpoint.clear(run.output_dir)
    if run.resume_from_checkpoint is None:
        metrics_file.set_aside(run.output_dir)
        return set()
    sent = metrics_file.forget_after(run.output_dir, -1 if step is None else step, run.validation_steps)
    best.mark_best(run.output_dir, run.best_metric)  # a metric that is not there ends the run here
    return sent


def latents_or_images(
    run: RunSettings, accelerator: Accelerator, train_set: TrainingSet, vae: AutoencoderKL | None
) -> tuple[CachedLatents | ByShape | TrainingSet, torch.device]:
    """The training set's cached latents, or itself where there are none, they are not wanted or cannot be kept; and
    where the VAE stays while the LoRA trains.
    """
    if vae is None:
        return train_set, accelerator.device
    samples = cached(run, accelerator, train_set, vae)
    home = accelerator.device if samples is train_set else torch.device("cpu")
    vae.to(home)
    return samples, home


def cached(
    run: RunSettings, accelerator: Accelerator, train_set: TrainingSet, vae: AutoencoderKL
) -> CachedLatents | ByShape | TrainingSet:
    """The training set's latents on disk, or itself."""
    if run.no_cache_latents:
        return train_set
    folder = run.cache_dir or run.output_dir / "latent_cache"
    place = (accelerator.process_index, accelerator.num_processes)
    return cached_or_not(train_set, vae, folder, run.dataloader_num_workers, *place)


def agree(accelerator: Accelerator, loss: Tensor, stop: bool) -> tuple[float, bool]:
    """Mean of the processes' losses, and whether any of them wants to stop: one exchange for both."""
    mean, wish = accelerator.reduce(torch.stack([loss, loss.new_tensor(float(stop))]), reduction="mean").tolist()
    return mean, wish > 0
