"""The only training loop, the same for every intrinsic and method: it calls the objective's `loss` and `predict`."""

import math
import os
import shlex
import time
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from itertools import count
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    set_seed,
)
from diffusers import AutoencoderKL
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from utils import __version__
from utils.base_model import Frozen
from utils.errors import InputError, note, one_line
from utils.image_io.files import PICTURES
from utils.inference.job import BASES, SCRIPTS
from utils.latents import reduction
from utils.lora import SAFETENSORS, add_lora, load_attn_procs, read_lora, save_lora
from utils.noise import generators
from utils.objectives import Objective, SingleStep
from utils.paths import ROOT
from utils.system import atomic, environment, processes, provenance, signals
from utils.system.compute import autocasts, choose_attention, compile_unet, move_frozen, runs_ahead, warn_of_slow_bf16
from utils.training import checkpoint, tracking, upload
from utils.training.cache import READERS, ByShape, CachedLatents, cached_or_not
from utils.training.data import Joined, TrainingSet, batches_of, describe_buckets, each, masked_share, mix_of
from utils.training.recipe import write_recipe
from utils.training.settings import Settings
from utils.training.state import Report, TrainingState, shared_settings
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
    processes.check_gpus()
    processes.check_hosts()
    try:
        accelerator = Accelerator(
            cpu=processes.use_cpu(),
            # a plugin: the plain argument gives way to an environment variable
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation),
            mixed_precision=precision,
            dynamo_backend="no",  # else the variable's, which also turns TF32 on; --compile keeps names and weights
            kwargs_handlers=[InitProcessGroupKwargs(timeout=processes.PATIENCE)],
            log_with=list(settings.trackers) or None,
            project_config=ProjectConfiguration(str(output_dir), str(output_dir / settings.logging_dir)),
        )
    except (ValueError, ImportError) as error:  # fp16 without a GPU, a tracker that is not installed
        flags = f"--mixed_precision={settings.mixed_precision} --report_to={','.join(settings.trackers)}"
        raise InputError(f"{flags}: {error}") from None
    accelerator.autocast_handler = AutocastKwargs(enabled=autocasts(accelerator.device.type))
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
    processes.check_shared(output_dir)
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
    choose_attention(base.network, accelerator.device, frozen_dtype(accelerator))
    add_lora(base.network, args.rank, args.seed, args.lora_targets.split(","))
    if args.lora_path:
        load_attn_procs(base.network, args.lora_path)


def train(  # noqa: C901 (the loop is read from top to bottom in one place)
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
        factor = reduction(objective.vae)
        for text in each(train_set, lambda one: masked_share(one, factor, seed)):
            note(text)

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
        if is_finished(settings, state.step, state.max_steps):
            if main:
                print(
                    f"already finished: {state.step} of {state.max_steps} steps in {output_dir}; nothing was written"
                )
                print(outcome(output_dir, metadata, settings))
                print("      or a larger --max_train_steps to train on, another --output_dir to start again")
            signals.forget()
            accelerator.end_training()
            atomic.unlock(output_dir)
            return
        note(f"resuming from {resume_from} at step {state.step}")
    elif settings.resume_from_checkpoint:
        note(f"no checkpoint in {output_dir} yet; starting from step 0")

    # Records of the run: new, or cut back to the step that it continues from
    sent = begin_records(settings, state.step if resume_from else None) if main else set()
    if main:
        write_recipe(settings, resume_from, state.step, accelerator.mixed_precision, accelerator.num_processes)
    config = dict(settings.flags) | metadata | state.counts | {"training_images": len(train_set)}
    config |= {"training_data": train_set.fingerprint, "versions": provenance.versions(), **provenance.git_state()}
    config["validation_images"] = {split: len(items) for split, items in validation_samples.items()}
    resumed_at = state.step if resume_from else -1 if settings.resume_from_checkpoint else None
    tracking.start_trackers(accelerator, output_dir, config, settings, resumed_at, sent)

    # Data: latents from the cache, or images, in an endless stream from which each step reads its own samples
    samples, vae_home = latents_or_images(settings, accelerator, train_set, objective.vae, state.bare_network)
    place = (accelerator.process_index, accelerator.num_processes, state.seen)
    batches = batches_of(train_set, state.step_samples, batch_size, seed, *place)
    if train_set.whole:
        if isinstance(objective, SingleStep):
            for side in sorted({side for shape in train_set.shapes for side in shape}):
                objective.base.check_side(side, "--crop none: side of an image")
        for text in each(train_set, lambda one: describe_buckets(one.shapes, state.step_samples)):
            note(text)
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
        print(summary(state, settings, accelerator, train_set, frozen_dtype(accelerator), objective))
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
    ahead = runs_ahead(accelerator.device.type)
    waiting: Report | None = None  # the last step's, where the host has not read it yet

    def settle(report: Report, complete: bool) -> None:
        """Learning rate, averages, records and the count of skipped updates after a step."""
        mean_loss, norm, _ = report.read()
        values = {"train_loss": mean_loss, "grad_norm": norm, "lr": report.rate, "samples_per_second": report.speed}
        if math.isfinite(mean_loss) and math.isfinite(norm):
            state.schedule.step()
            state.averages.update()
        else:
            values["skipped_updates"] = state.skipped.total + 1
        tracking.log_scalars(accelerator, output_dir, values, report.step, complete)
        state.skipped.count(mean_loss, norm, report, output_dir, accelerator.scaler)
        bar.update(1)
        bar.set_postfix(loss=f"{mean_loss:.4f}", lr=f"{report.rate:.1e}", refresh=False)

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
            norm = accelerator.clip_grad_norm_(state.parameters, settings.max_grad_norm or math.inf)
            # the step before on a GPU: its result has arrived by now, and this step's learning rate depends on it
            stop = waiting is not None and waiting.read()[2]
            if waiting is not None:
                settle(waiting, complete=True)
            # all processes stop at the same step, as soon as one of them is asked to
            stopped_by = "--max_hours" if time.monotonic() > deadline else signals.stop_requested() or ""
            speed = state.step_samples / (time.monotonic() - since)
            rate = state.optimizer.param_groups[0]["lr"]
            # one exchange of loss, norm and stop; then the step, unless loss or norm are not finite
            loss_of_each = torch.stack(losses)
            waiting = Report(accelerator, state.step + 1, loss_of_each, norm, bool(stopped_by), stems, rate, speed)
            state.update(waiting.usable)
            state.step, state.seen = state.step + 1, state.seen + state.step_samples
            losses, stems = [], []

        step = state.step
        validating = validates(settings, step, state.max_steps)
        due = stop or validating or step >= state.max_steps or step % settings.checkpointing_steps == 0
        if due or not ahead:
            stop |= waiting.read()[2]
            validating &= step >= state.max_steps or not stop
            settle(waiting, complete=not validating)
            waiting = None
        last = step >= state.max_steps or stop
        saving = last or step % settings.checkpointing_steps == 0

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


def is_finished(settings: Settings, step: int, max_steps: int) -> bool:
    """True if the run has made its steps and nothing is left to do: the LoRA of the last one is in the folder.

    A run with --push_to_hub is never finished in this sense: the same command uploads again.
    """
    if step < max_steps or settings.push_to_hub or not (settings.output_dir / SAFETENSORS).is_file():
        return False
    try:
        written = read_lora(settings.output_dir).metadata
    except InputError:  # damaged: it is written again
        return False
    return written.get("steps") == str(step)


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
    settings: Settings, accelerator: Accelerator, train_set: TrainingSet, vae: AutoencoderKL, network: nn.Module
) -> tuple[CachedLatents | ByShape | Joined | TrainingSet, torch.device]:
    """The training set's cached latents, or the set itself if they are not wanted or cannot be kept; and the device
    that the VAE stays on while the LoRA trains. While images are encoded, `network` is not on the device.
    """
    samples: CachedLatents | ByShape | Joined | TrainingSet = train_set
    if not settings.no_cache_latents:
        folder = settings.cache_dir or settings.output_dir / "latent_cache"
        place = (accelerator.process_index, accelerator.num_processes)
        typed = "dataloader_num_workers" in settings.typed
        workers = settings.dataloader_num_workers if typed else processes.io_threads(READERS)
        off_the_device = partial(move_frozen, network, torch.device("cpu"))
        samples = cached_or_not(train_set, vae, folder, workers, *place, off_the_device)
        move_frozen(network, accelerator.device)
    home = accelerator.device if samples is train_set else torch.device("cpu")
    vae.to(home)
    return samples, home


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
        **({"trained_on": sets} if (sets := train_set.trained_on) else {}),
        **({"training_mix": mix} if (mix := mix_of(train_set)) else {}),
        **({"ema_decay": settings.ema_decay} if settings.ema_decay else {}),
        **({"base_precision": settings.base_precision} if settings.base_precision else {}),
        **({"depth_coding": coding} if (coding := train_set.intrinsic.depth_coding) != "linear" else {}),
    }


def summary(
    state: TrainingState,
    settings: Settings,
    accelerator: Accelerator,
    train_set: TrainingSet,
    dtype: torch.dtype,
    objective: Objective,
) -> str:
    """One line: data, length, LoRA, and the settings in use that may come from elsewhere than the flags."""
    outside = settings.mixed_precision is None and accelerator.mixed_precision != "no"
    set_by = f" (set by {environment.origin(environment.PRECISION)})" if outside else ""
    time = ""
    if isinstance(objective, SingleStep):
        time = f"timestep {objective.timestep} of {objective.base.times}; "
    lora, everything = state.counts["lora_parameters"], state.counts["all_parameters"]
    mix = f" ({about})" if (about := mix_of(train_set)) else ""
    quantised = f", the network's linear layers in {settings.base_precision}" if settings.base_precision else ""
    return (
        f"{len(train_set)} training images{mix}, {state.step_samples} a step, {state.max_steps} steps; "
        f"LoRA of rank {settings.rank}: {lora:,} parameters, {100 * lora / everything:.2f} % of the network; {time}"
        f"{accelerator.device}, {accelerator.num_processes} process(es), frozen parts in {dtype}{quantised}; "
        f"mixed precision {accelerator.mixed_precision}{set_by}, "
        f"{accelerator.gradient_accumulation_steps} micro-step(s) a step, "
        f"{'compiled' if settings.compile else 'not compiled'}, TF32 {'on' if settings.allow_tf32 else 'off'}"
    )


def has_bin(metadata: Mapping[str, object]) -> bool:
    """True if the run also writes a .bin, for the paper's line of code. A .bin has no header, so that a reader could
    not know of a depth coding to undo, or of a network that is not Stable Diffusion 1.x or 2.x's.
    """
    return metadata.keys().isdisjoint(("depth_coding", "family")) and metadata["method"] in BASES


def outcome(output_dir: Path, metadata: Mapping[str, object], settings: Settings) -> str:
    """The last lines of a run: its files, and the command that predicts with them."""
    method = str(metadata["method"])
    files = " and .bin" if has_bin(metadata) else ""
    files += ", metrics.jsonl" + (", validation/, best.json" if settings.validation_steps else "")
    words = ["python", SCRIPTS[method], "--lora", str(output_dir)]
    if method != "gan":  # which reads no images
        words += ["--input_dir", images_to_predict(str(settings.flags.get("train_data_dir") or ""))]
    command = shlex.join([*words, "--output_dir", "output"])
    lines = [f"{output_dir}: pytorch_lora_weights.safetensors{files}", f"next: {command}"]
    if "tensorboard" in settings.trackers:
        lines.append(f"      tensorboard --logdir {shlex.quote(str(output_dir / settings.logging_dir))}")
    return "\n".join(map(one_line, lines))


def images_to_predict(train_data_dir: str) -> str:
    """What to predict first: DIODE's val, else of an own folder images/val/ or one image, else those shipped here."""
    if not Path(train_data_dir).is_dir():  # several, with --mix
        train_data_dir = train_data_dir.partition(",")[0]
    own = Path(train_data_dir) / "images"
    places = (Path(train_data_dir).parent / "depths" / "val", own / "val")
    found = next((str(place) for place in places if train_data_dir and place.is_dir()), None)
    return found or (train_data_dir and first_image(own)) or os.path.relpath(ROOT / "examples")


def first_image(folder: Path) -> str | None:
    """The first image in or below a folder, which may hold many thousands; None where there is none."""
    for place, below, names in os.walk(folder):
        below.sort()
        if found := [name for name in sorted(names) if name.lower().endswith(PICTURES)]:
            return os.path.join(place, found[0])  # noqa: PTH118
    return None
