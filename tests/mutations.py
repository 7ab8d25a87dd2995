"""Mutations of the harness that its tests have to notice: `python -m tests.mutations`, with `--only N` for some.

Each row of the table is one small fault. It is put into a copy of the checkout, never into the checkout itself, and
the named tests run there against the copy. A mutation that no test notices is a gap: write the missing test. A row
whose old text is not in its file exactly once is out of date: adapt it to the changed line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".git", ".venv", "build", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "store")
COPY = "HARNESS_MUTATED_COPY"
"""Environment variable that names the copy; tests/conftest.py checks that the package comes from it."""
OUTPUT = "mutation-output.txt"
LIMIT_S = 600.0


@dataclass(frozen=True)
class Mutation:
    """One fault, and where it must be noticed."""

    file: str
    """Below harness/."""
    old: str
    """Exact text, found once in the file."""
    new: str
    tests: str
    """Arguments of pytest below tests/: files, or single tests."""
    fast: bool = False
    """It takes a second or two, and is among those that `make test` tries."""


MUTATIONS = (
    # losses
    Mutation("losses/chunks.py", "torch.logaddexp(per_image, z.logsumexp(0))", "torch.maximum(per_image, z.logsumexp(0))", "losses/test_formulas.py::test_formula[infonce]"),
    Mutation("losses/chunks.py", "torch.where(part == -torch.inf, torch.inf, part)", "part", "losses/test_formulas.py::test_float32_stays_finite_and_near_float64[1.0-macl]"),
    Mutation("losses/sigmoid.py", "len(batch.text if self.per_caption else batch.image)", "len(batch.image)", "losses/test_formulas.py::test_formula[multi_positive_sigmoid]"),
    Mutation("losses/softmax.py", "if batch.epoch >= self.start else 0.0", "if batch.epoch > self.start else 0.0", "losses/test_references.py::test_mafa_smooths_from_its_epoch_on"),
    Mutation("losses/gated.py", "1 - self.momentum)", "self.momentum)", "losses/test_formulas.py::test_formula[alip]"),
    Mutation("losses/tokens.py", "(1 + margin - fixed).clamp(min=0)", "(1 + margin - cosines).clamp(min=0)", "losses/test_references.py::test_dreamlips_circle_loss_is_the_authors"),
    Mutation("losses/momentum.py", "(owner[:, None] == of)[:, :, None] | ~mask", "~mask[None].expand(len(query), -1, -1)", "losses/test_formulas.py::test_formula"),
    Mutation("training/momentum.py", "(place > 0) & (place < tokens", "(place < tokens", "training/test_momentum.py::test_features_of_patches_and_tokens_stand_beside_those_of_views_and_captions"),
    Mutation("losses/base.py", "self.log_scale.clamp_(max=self.max_log_scale)", "self.log_scale.clamp_(min=-self.max_log_scale)", "losses/test_references.py::test_clamp_and_frozen_scale"),
    Mutation("losses/views.py", "fixed = [F.normalize(one.detach()", "fixed = [F.normalize(one", "losses/test_formulas.py::test_formula[simsiam]"),
    Mutation("losses/views.py", "negative[there]", "negative", "losses/test_formulas.py::test_formula[negclip]"),
    Mutation("losses/softmax.py", "smoothing * flat", "flat", "losses/test_formulas.py::test_formula[clip_rocket]"),
    Mutation("training/encoder.py", "self._with_views(text, unit.text_views, step", "self._with_views(text, unit.text_views.flip(1), step", "training/test_terms.py::test_features_of_edits_stand_beside_those_of_tokens"),
    Mutation("training/batches.py", "step // self.steps_per_epoch, *one)", "0, *one)", "training/test_terms.py::test_edits_of_captions_are_a_function_of_seed_epoch_and_sample"),
    Mutation("training/encoder.py", "towers.word_losses(*unit.masked.unbind(1))", "towers.word_losses(unit.tokens, unit.masked[:, 1])", "training/test_terms.py::test_masked_tokens_are_predicted_by_the_text_tower"),
    Mutation("data/dataset/text_edits.py", "range(1, int(row[end]))", "range(1, 2 * int(row[end]))", "data/test_text_edits.py::test_tokens_are_masked_as_in_bert"),
    Mutation("data/dataset/text_edits.py", "word not in alike", "word != old", "data/test_text_edits.py::test_a_hard_negative_by_each_rule"),
    Mutation("models/decoder.py", "tokens[caption, place + 1]", "tokens[caption, place]", "training/test_decoder.py::test_padding_is_not_predicted_and_captions_are_read_with_their_own_image"),
    Mutation("training/encoder.py", "seen[owner]", "seen[owner.flip(0)]", "training/test_decoder.py::test_a_step_is_that_of_open_clips_own_parts"),
    Mutation("losses/decoder.py", "losses.to(dtype).sum() / counts.to(dtype).sum().clamp(min=1)", "(losses / counts.clamp(min=1)).to(dtype).mean()", "losses/test_formulas.py::test_formula[captioning]"),
    Mutation("losses/prototypes.py", "torch.argsort(self.seen_samples, stable=True)", "torch.arange(len(self.seen_samples))", "losses/test_prototypes.py"),
    Mutation("losses/prototypes.py", "cluster_means(image, of_text.labels,", "cluster_means(image, of_image.labels,", "losses/test_prototypes.py"),
    Mutation("losses/prototypes.py", "manual_seed(self.seed + episodes)", "manual_seed(self.seed)", "losses/test_prototypes.py"),
    Mutation("losses/kmeans.py", "score > best_score", "score < best_score", "losses/test_prototypes.py::test_kmeans_is_lloyds_algorithm"),
    # FFF to the letter
    Mutation("models/crop.py", '"size": resize}', '"size": own.size}', "features/test_features.py::test_a_teachers_images_are_resized_and_then_cropped_as_torchvision_does"),
    Mutation("runs/identity.py", 'else f"{name}:resize={resize}"', "else name", "head/test_identity.py::test_what_a_teacher_sees_is_in_the_id_unless_it_is_its_own_transform"),
    Mutation("data/dataset/transforms.py", 'else Image.Resampling.BILINEAR', "else _BICUBIC", "data/test_transforms.py::test_declips_recipe_is_that_of_its_code"),
    # parts of installed packages
    Mutation("config/parts.py", "        if found.content != self.content:\n            what = f\"{found.content} is installed", "        if False:\n            what = f\"{found.content} is installed", "head/test_part_packages.py::test_another_version_on_the_node_is_refused"),
    # mixtures
    Mutation("data/proportions.py", "epoch = min(int(size / share)", "epoch = max(int(size / share)", "data/test_mixture.py::test_an_epoch_is_the_longest_with_no_source_visited_more_than_once_over"),
    Mutation("data/proportions.py", "int(end * whole) for end", "int(end * self.epoch) * epochs for end", "data/test_mixture.py::test_shares_are_exact_and_samples_are_visited_equally_often"),
    Mutation("data/dataset/order.py", 'stream("pass over a source", seed, number, one)', 'stream("pass over a source", seed, number)', "data/test_mixture.py::test_each_pass_over_a_source_has_an_order_of_its_own"),
    Mutation("data/dataset/order.py", "    order[again], order[free] = order[free], order[again]\n", "", "data/test_mixture.py::test_debiased_batches_are_of_one_source_and_leave_nothing_out"),
    Mutation("data/dataset/order.py", "batches = proportions._replace(epoch=proportions.epoch // batch_size)", "batches = proportions._replace(epoch=proportions.epoch // batch_size // 2 * 2)", "data/test_mixture.py::test_debiased_batches_are_of_one_source_and_leave_nothing_out"),
    Mutation("config/batches.py", "if count < 2 * global_batch_size:", "if count < global_batch_size:", "data/test_mixture.py::test_debiased_batches_need_sources_of_two_batches"),
    # MP-NCE
    Mutation("losses/mp_nce.py", "cost = -F.logsigmoid(z_of - negatives[row]) / positives[row]", "cost = -F.logsigmoid(z_of - negatives[row])", "losses/test_formulas.py::test_formula"),
    Mutation("losses/mp_nce.py", "self.sweep, within)", "self.sweep, (within[0][:0], within[1][:0]))", "losses/test_formulas.py::test_formula"),
    Mutation("losses/mp_nce.py", "torch.logaddexp(negatives + offsets[number], others)", "torch.logaddexp(negatives, others)", "losses/test_references.py::test_mp_nces_own_factors_and_offsets_have_the_gradients_of_the_formula"),
    # rows of reported numbers alone
    Mutation("reporting/sections/tables.py", "for name, one in ablation.published.items():", "for name, one in dict(list(ablation.published.items())[1:]).items():", "reporting/test_formats.py::test_a_published_system_without_an_arm_has_a_row_of_its_own"),
    Mutation("cli/output.py", "    _published(planned)\n", "", "test_shipped_specs.py::test_the_plan_shows_every_row_of_tables_1_to_3"),
    # parts of one's own
    Mutation("config/parts.py", 'return {**super().science(defaults=defaults), "content": self.content}', "return super().science(defaults=defaults)", "head/test_own_parts.py::test_the_id_follows_content_and_parameters_alone"),
    Mutation("config/parts.py", "if self.content not in (files.digest, files.file.parent.name):", "if False:", "head/test_own_parts.py::test_an_edit_between_plan_and_run_is_noticed"),
    Mutation("config/parts.py", "        _remember(self.description, PartFiles(copy, files.contents), type(self).part, self.name)\n", "", "head/test_own_parts.py::test_a_run_keeps_its_part"),
    Mutation("base/part_files.py", "waiting += _beside(file.parent, _imported(name, contents[name]))", "_imported(name, contents[name])", "head/test_own_parts.py::test_what_is_beside_it_is_found_through_packages"),
    Mutation("base/part_files.py", "        self._forget_others()\n", "", "head/test_own_parts.py::test_two_parts_may_have_modules_of_one_name"),
    Mutation("losses/tokens.py", "self.local_log_scale.clamp_(max=self.max_log_scale)", "self.local_log_scale.clamp_(min=self.max_log_scale)", "losses/test_references.py::test_dreamlips_own_factor_starts_freezes_and_clamps_as_the_other"),
    Mutation("losses/tokens.py", "Positives(every, every), local_scale, self.sweep", "Positives(every, every), scale, self.sweep", "losses/test_references.py::test_dreamlips_two_factors_are_the_shared_one_where_they_agree"),
    Mutation("losses/conformance.py", "first = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]", "first = errors", "losses/test_conformance.py"),
    Mutation("mining/build.py", "torch.cat([owner[own] * len(text) + own, rows", "torch.cat([owner[own] * 0, rows", "mining/test_conformance.py::test_a_rule_of_pairs_keeps_the_ground_truth"),
    # drawings of a package
    Mutation("data/openclipart/split.py", "        beside.update(near[number].tolist())\n", "", "data/test_openclipart.py::test_nothing_in_training_resembles_what_is_tested"),
    Mutation("data/openclipart/words.py", "            wrong += int((~held[chosen]).sum())\n", "", "data/test_openclipart.py::test_the_error_rate_is_that_of_the_captions"),
    Mutation("data/synthetic/truth.py", "2 * (held @ said.T) >= total", "2 * (held @ said.T) > total", "data/test_truth.py::test_keywords_match_if_at_least_half_of_them_are_the_pictures"),
    # a job's start without optional packages
    Mutation("node/checkpoint_evaluation.py", "        if self.alone:\n", "        if False:\n", "evaluation/test_start.py::test_known_numbers_need_no_torch_and_known_features_no_vision_packages"),
    Mutation("evaluation/outcomes.py", 'np.packbits(column, bitorder="little")', "np.packbits(column)", "evaluation/test_outcomes_arrow.py"),
    Mutation("evaluation/outcomes.py", "np.ascontiguousarray(column)", "column.base if column.base is not None else column", "evaluation/test_outcomes_arrow.py"),
    Mutation("base/open_clip_alone.py", "            del sys.modules[name]  # some", "            pass  # some", "head/test_optional_packages.py::test_a_version_of_open_clip_that_cannot_do_without"),
    Mutation("execute/local/optional_packages.py", "return [experiment.model, teacher.model]", "return [experiment.model]", "head/test_optional_packages.py::test_which_runs_may_need_them"),
    Mutation("training/split.py", "(layers.PatchDropout, layers.PatchDropoutWithIndices)", "layers.PatchDropout", "training/test_split.py::test_what_couples_in_timm"),
    # training
    Mutation("training/trainer.py", "            student.objective.clamp_()\n", "", "training/test_steps.py::test_the_scale_is_clamped_after_each_step"),
    Mutation("training/divergence.py", "state.bad + 1 if lost else 0", "state.bad + 1 if lost else state.bad", "training/test_watch.py"),
    Mutation("training/schedule.py", "return (step + 1) / self.warmup", "return step / self.warmup", "node/test_train.py::test_schedules_in_closed_form"),
    Mutation("training/schedule.py", "left > self.cooldown", "left >= self.cooldown", "node/test_train.py::test_schedules_in_closed_form"),
    Mutation("losses/queues.py", "(self.taken + number) % len(self.rows)", "number", "losses/test_momentum.py"),
    Mutation("losses/queues.py", "device=self.rows.device) < self.taken)", "device=self.rows.device) < len(self.rows))", "losses/test_momentum.py", fast=True),
    Mutation("losses/queues.py", "mean.mul_((log_sum - base).exp_()[:, None])", "mean", "losses/test_momentum.py"),
    Mutation("losses/momentum.py", "share = self.distillation_at(batch.epoch)", "share = self.distillation_at(1.0)", "losses/test_momentum.py"),
    Mutation("training/momentum.py", "seed_of(self._seed, step, unit.first, view))", "seed_of(self._seed, step, 0, view))", "training/test_momentum.py"),
    Mutation("training/trainer.py", "            student.objective.advance()\n", "", "training/test_momentum.py"),
    Mutation("training/trainer.py", "                student.momentum.update()\n", "                pass\n", "training/test_momentum.py"),
    Mutation("training/ema.py", "tensors, 1 - self._decay)", "tensors, self._decay)", "training/test_steps.py::test_the_average_follows_the_weights_after_each_step"),
    Mutation("training/norms.py", "total / parts if", "total if", "training/test_split.py::test_running_statistics_are_the_average_over_the_parts"),
    Mutation("training/checkpoint.py", 'to("cpu", copy=True)', 'to("cpu")', "training/test_checkpoints.py"),
    Mutation("training/encoder.py", "torch.manual_seed(seed_of(self._seed, step, unit.first)) ", "torch.manual_seed(self._seed) ", "training/test_split.py::test_dropout_draws_other_masks_in_each_step_and_for_each_part"),
    Mutation("training/mining_step.py", "positives=Positives(mined.local_rows, mined.cols)", "positives=None", "training/test_steps.py::test_a_step_trains_on_the_mined_positives"),
    # evaluation sets
    Mutation("evaluation/layout.py", "if beyond.is_file():", "if False:", "evaluation/test_evaluate_sets.py"),
    Mutation("evaluation/layout.py", "if hidden := HIDDEN_SEPARATORS.search(text):", "if hidden := None:", "evaluation/test_evaluate_sets.py"),
    Mutation("evaluation/sets.py", "blank = sum(not caption.strip()", "blank = sum(not caption", "evaluation/test_evaluate_sets.py"),
    # shells and schedulers
    Mutation("base/machine.py", "if not _RANKS.fullmatch(name)", "", "training/test_processes.py::test_an_outer_shell_says_nothing_of_the_processes_that_we_start"),
    Mutation("execute/local/processes.py", "settings.threads or users or", "settings.threads or", "training/test_processes.py::test_the_threads_are_those_that_the_user_states"),
    Mutation("execute/slurm/client.py", 'line.split("|", 6)', 'line.split("|")', "execute/test_slurm.py"),
    Mutation("parallel/process_group.py", "if stop.is_set() and thread.is_alive():", "if False:", "training/test_processes.py::test_a_stop_ends_the_wait_for_processes_that_never_come"),
    # checkpoints
    Mutation("models/checkpoints.py", 'torch.cat([parts[one] for one in "qkv"])', 'torch.cat([parts[one] for one in "kqv"])', "node/test_checkpoints.py"),
    Mutation("models/checkpoints.py", 'name.replace("_orig_mod.", "")', "name", "node/test_checkpoints.py"),
    Mutation("node/export.py", "math.log(scale)", "scale", "node/test_export.py"),
    Mutation("node/export.py", "named.get(number, token)", "token", "node/test_export.py"),
    Mutation("planning/from_open_clip.py", 'values["batch_size"] * values["accum_freq"] * gpus', 'values["batch_size"] * gpus', "test_from_open_clip.py"),
    # mining
    Mutation("mining/similarity.py", "exact(Pairs(pairs.rows[close], pairs.cols[close])) > threshold", "exact(Pairs(pairs.rows[close], pairs.cols[close])) >= threshold", "mining/test_positives.py::test_a_score_at_its_threshold_is_not_above_it"),
    Mutation("mining/thresholds.py", "guard >= high", "guard > high", "mining/test_thresholds.py"),
    Mutation("mining/thresholds.py", "torch.bincount(bins[left_out], minlength=size)", "0", "mining/test_thresholds.py"),
    Mutation("mining/positives.py", "clause & IMAGE_TEXT > 0, clause & ~TEXT_TEXT, clause", "clause & IMAGE_TEXT > 0, clause, clause", "mining/test_positives.py"),
    Mutation("mining/grouping.py", "from_image if step % 2 else from_text", "from_text if step % 2 else from_image", "mining/test_grouping.py"),
    # captions, order, data
    Mutation("data/dataset/caption_choice.py", "[text.lower() for text in picked]", "picked", "training/test_batches.py"),
    Mutation("data/dataset/caption_choice.py", "draw=0) < spec.share", "draw=0) > spec.share", "data/test_captions.py"),
    Mutation("data/dataset/order.py", '"epoch order", seed, epoch).permutation(samples)', '"epoch order", seed, 0).permutation(samples)', "data/test_order.py"),
    Mutation("data/sources/tar.py", 'raise self._bad("is truncated: its end mark is missing")', "return", "data/test_tar.py", fast=True),
    Mutation("data/sources/tar.py", 'raise self._bad(f"is damaged at byte {tar.offset}")\n        if', "return\n        if", "data/test_tar.py", fast=True),
    Mutation("data/sources/tar.py", "            self._check_headers(info)\n", "", "data/test_as_people_have_it.py"),
    Mutation("data/sources/tar_samples.py", "        if (key := key_of(member)) is None:\n            skipped", "        if (key := key_of(member)) is None:\n            Counter[str]()", "data/test_as_people_have_it.py"),
    Mutation("data/sources/rows.py", "len(row) == width and not _holds_rows(row, separator)", "len(row) == width", "data/test_as_people_have_it.py"),
    Mutation("data/sources/rows.py", "quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE, strict=True", "strict=True", "data/test_as_people_have_it.py"),
    Mutation("data/sources/patterns.py", "os.path.join(glob.escape(there), rest)", "os.path.join(there, rest)", "data/test_as_people_have_it.py"),
    Mutation("data/sources/inspection.py", "report.samples < data.least_share * whole", "report.samples < 0", "data/test_as_people_have_it.py"),
    Mutation("data/sources/sidecars.py", "self._owners[row] not in (-1, owner)", "False", "data/test_as_people_have_it.py"),
    Mutation("data/dataset/index.py", "if candidate.scope != self._scope:", "if False:", "data/test_as_people_have_it.py"),
    Mutation("data/dataset/pictures.py", "_flattened(_shallow(turned), options)", "_flattened(turned, options)", "data/test_as_people_have_it.py"),
    Mutation("data/dataset/index.py", "fingerprint.update(json.dumps(stated", "hashlib.sha256(json.dumps(stated", "data/test_as_people_have_it.py"),
    Mutation("data/sources/quarantine.py", "(key, Path(location).name)", "(key, location)", "data/test_check.py"),
    # identity, completeness, attempts
    Mutation("config/base.py", 'defaults or name == "kind" or _is_other', "defaults or _is_other", "head/test_identity.py", fast=True),
    Mutation("runs/identity.py", '({"teacher": self.teacher} if self.teacher else {})', "{}", "head/test_identity.py", fast=True),
    Mutation("planning/completeness.py", "Missing(training=not folder.is_trained(), record=True, sets=wanted", "Missing(training=False, record=True, sets=wanted", "execute/test_sweep.py"),
    Mutation("base/files.py", "if not stat.S_ISREG(status.st_mode)", "if stat.S_ISDIR(status.st_mode)", "head/test_boundary.py", fast=True),
    Mutation("data/sources/rows.py", "except (ValueError, RecursionError):", "except ValueError:", "data/test_sidecars.py"),
    Mutation("runs/attempts.py", "(newest := self.newest()) > number", "(newest := self.newest()) > number + 1", "head/test_fence.py", fast=True),
    Mutation("runs/attempts.py", "os.O_CREAT | os.O_EXCL", "os.O_CREAT", "head/test_fence.py", fast=True),
    # executors
    Mutation("execute/life.py", "lambda at: at.is_cancelled or at.cancelled is not None", "lambda at: at.cancelled is not None", "execute/test_life.py", fast=True),
    Mutation("execute/life.py", "lambda at: at.starts >= MOST_STARTS", "lambda at: False", "execute/test_life.py", fast=True),
    Mutation("execute/life.py", "at.missing.training and at.teacher in", "at.teacher in", "execute/test_life.py", fast=True),
    Mutation("execute/slurm/submitter.py", "max(completed, default=since)", "since", "execute/test_histories.py::test_a_set_that_a_quota_holds_back_while_another_command_finishes_the_run"),
    Mutation("execute/slurm/executor.py", "in self._open & finishing if", "in self._open & active.keys() if", "execute/test_sweep.py::test_an_evaluation_that_a_quota_holds_back_is_in_nobodys_hands", fast=True),
    Mutation("execute/slurm/job_tracker.py", 'job.state == "FAILED" and tracked.is_said_over_memory()', "False", "execute/test_sweep.py::test_the_output_of_a_killed_job_says_that_it_was_for_memory"),
    Mutation("execute/slurm/job_tracker.py", 'tracked.job.state != "FAILED" or not self._scheduler.limits().accounting', "True", "execute/test_sweep.py::test_a_failed_job_that_accounting_does_not_show_yet_is_waited_for"),
    Mutation("execute/slurm/job_tracker.py", "return not begun or not begun[-1].job", "return False", "execute/test_sweep.py::test_a_run_that_a_process_here_executes_is_waited_for"),
    Mutation("planning/completeness.py", "set(left.sets) <= set(requested)", "True", "execute/test_sweep.py::test_a_job_of_an_earlier_request_does_not_do_what_is_asked_now"),
    Mutation("execute/slurm/retry_policy.py", ', "no_teacher"', "", "execute/test_sweep.py::test_a_student_is_not_given_up_for_what_its_teachers_jobs_did", fast=True),
    Mutation("execute/slurm/executor.py", "self._tracker.training(run.teacher)", "self._tracker.active.get(run.teacher)", "execute/test_sweep.py::test_a_student_waits_while_only_the_evaluation_of_its_failed_teacher_is_queued", fast=True),
    Mutation("execute/slurm/executor.py", "for tracked in jobs\n", "for tracked in jobs[-1:]\n", "execute/test_sweep.py", fast=True),
    Mutation("execute/slurm/job_tracker.py", "return max(jobs, key=order)", "return jobs[0]", "execute/test_sweep.py::test_the_last_job_is_cancelled_though_another_of_the_first_array_goes_on", fast=True),
    Mutation("execute/slurm/retry_policy.py", 'return job.reason == f"{DISK_FULL}:0"', "return False", "execute/test_sweep.py", fast=True),
    Mutation("execute/executor.py", "(Life.PENDING if run.teacher in self._open else Life.DONE)", "Life.DONE", "head/test_conduct.py::test_students_wait_for_the_end_of_their_teacher"),
    Mutation("execute/slurm/job_tracker.py", "submission.intent.created_at > ADOPTION_S", "submission.intent.created_at < ADOPTION_S", "execute/test_sweep.py", fast=True),
    Mutation("execute/slurm/job_tracker.py", '"node_failure" if start.number < newest', '"node_failure" if start.number <= newest', "execute/test_sweep.py"),
    Mutation("execute/slurm/retry_policy.py", "job.memory_share >= _MEMORY_SHARE", "job.memory_share < _MEMORY_SHARE", "execute/test_sweep.py"),
    Mutation("execute/slurm/retry_policy.py", "if end.step > best:", "if end.step >= best:", "execute/test_sweep.py"),
    Mutation("execute/slurm/cluster_limits.py", "if amount > most:", "if amount > most + 1:", "execute/test_cluster_limits.py"),
    # planning
    Mutation("planning/plan.py", 'known.role == "teacher"', 'known.role == "arm"', "head/test_plan.py", fast=True),
    # statistics, reporting
    Mutation("statistics/seeds.py", "(len(values) - 1))", "len(values))", "test_statistics.py"),
    Mutation("statistics/seeds.py", "(len(known) - rank) * p", "len(known) * p", "test_statistics.py"),
    Mutation("statistics/samples.py", "min(1.0, 2 * float(", "min(1.0, float(", "test_sample_tests.py", fast=True),
    Mutation("reporting/formats/page.py", 'if one.word == "equal" else ("p", one.p)', 'if one.word == "open" else ("p", one.p)', "reporting/test_overview.py"),
    Mutation("reporting/sections/overview.py", "if not one.is_decided)", "if one.is_decided)", "reporting/test_overview.py"),
    Mutation("reporting/sections/document.py", "                damaged.append(", "                0 and damaged.append(", "reporting/test_gallery.py"),
    Mutation("reporting/references.py", '- {"source", "unit", "protocol", "rows"}', '- table.keys()', "test_docs_run.py::test_every_toml_that_is_shown_is_read_by_the_real_loader"),
    Mutation("cli/status.py", ".is_moving for one in status(plan(), store)) and over:", ".is_moving for one in status(plan(), store)):", "head/test_status_watch.py"),
    Mutation("cli/output.py", "if path not in base or base[path] != value}", "}", "head/test_status_watch.py"),
    Mutation("reporting/collect/pareto.py", "if top > best:", "if top >= best:", "reporting/test_budgets.py"),
    Mutation("reporting/collect/comparison.py", "if one.identity == own}", "if own}", "reporting/test_comparison.py"),
    Mutation("statistics/arms.py", "own < self._quiet * (1 - 1e-9)", "own > self._quiet * (1 - 1e-9)", "reporting/test_trace.py"),
    Mutation("statistics/arms.py", "distinct = {tuple(sorted(seeds.items())): seeds", "distinct = {tuple([*sorted(seeds.items()), id(seeds)]): seeds", "test_arms.py::test_a_copy_of_an_arm_changes_nothing"),
    Mutation("planning/isolation.py", "passed = ours.idle() | theirs.idle()", "passed = ours.idle() & theirs.idle()", "head/test_isolation.py", fast=True),
    Mutation("planning/isolation.py", 'f"{path}.".startswith(f"{factor}.")', "path.startswith(factor)", "head/test_isolation.py"),
    Mutation("reporting/sections/answer.py", "    elif isolated.besides:\n", "    elif False:\n", "reporting/test_answer.py::test_a_claim_whose_arms_differ_in_more_is_not_attributed"),
    Mutation("reporting/collect/comparison.py", "one.p is not None and not shared_level(column, name, baseline)", "one.p is not None", "reporting/test_levels.py"),
    Mutation("mining/placebo.py", "drawn[drawn >= caption] += 1", "drawn[drawn > caption] += 1", "mining/test_placebo.py"),
    Mutation("mining/placebo.py", "default_rng([batch, row])", "default_rng([batch, row - mined.images.start])", "mining/test_placebo.py::test_ranks_draw_what_one_process_draws"),
    Mutation("mining/truth.py", "others = told & (owners != row)", "others = owners != row", "mining/test_truth.py::test_all_that_is_true_and_says_something"),
    Mutation("mining/truth.py", "(1 - self._spec.precision) + draw.random()", "(1 - self._spec.precision)", "mining/test_truth.py::test_precision_and_number_are_those_asked_for"),
    Mutation("mining/truth.py", "default_rng([batch, row])", "default_rng([batch, row - images.start])", "mining/test_truth.py::test_ranks_draw_what_one_process_draws"),
    # evaluation
    Mutation("evaluation/retrieval.py", "(index < target[:, None])", "(index > target[:, None])", "evaluation/test_evaluate_retrieval.py"),
    Mutation("evaluation/metrics.py", "len(counts) ** 2", "len(counts)", "evaluation/test_evaluate_metrics.py"),
    Mutation("evaluation/conditions.py", '"classnames": classnames, "templates": list(templates_of(contents.layout, spec))', '"classnames": classnames', "evaluation/test_evaluate_protocol.py"),
    Mutation("evaluation/zero_shot.py", "normalize(features.view(len(names), len(templates), -1).mean(dim=1), dim=-1)", "features.view(len(names), len(templates), -1).mean(dim=1)", "evaluation/test_evaluate_zero_shot.py"),
    Mutation("evaluation/token_wise.py", "cosines.amax(dim=1).mean(dim=2)", "cosines.amax(dim=3).mean(dim=1)", "evaluation/test_token_wise.py::test_similarities_are_those_of_loops_for_any_blocks"),
    Mutation("evaluation/evaluator.py", "ranks_of_scores(scores[:, 0], captions, scores[:, 1])", "ranks_of_scores(scores[:, 0], captions)", "evaluation/test_token_wise.py::test_retrieval_by_hand"),
    Mutation("evaluation/recorded.py", 'if evaluation.protocol.get("similarity") != known.get("similarity"):', "if False:", "evaluation/test_token_wise.py::test_numbers_of_the_two_similarities_never_meet"),
    Mutation("evaluation/towers.py", "torch.arange(tokens.shape[1], device=tokens.device) <= ends", "torch.arange(tokens.shape[1], device=tokens.device) < ends", "evaluation/test_token_wise.py::test_classification_by_hand"),
    Mutation("evaluation/contents.py", "    elif before != now:", "    elif before['task'] != now['task']:", "evaluation/test_declared_sets.py::test_a_version_that_changed_says_what"),
    Mutation("evaluation/sets.py", "return layout.labels.index(int(text)) if int(text) in layout.labels else None", "return int(text) if int(text) in layout.labels else None", "evaluation/test_declared_sets.py::test_a_subset_of_the_labels"),
    Mutation("evaluation/geometry.py", "features[start:]", "features", "evaluation/test_geometry.py::test_uniformity_is_its_definition"),
    Mutation("evaluation/geometry.py", "images[owner] - captions", "images[: len(captions)] - captions[: len(images)]", "evaluation/test_geometry.py::test_the_metrics_of_a_set_are_those_of_its_features"),
    Mutation("evaluation/registry.py", "return not self.opt_in or", "return True or", "evaluation/test_geometry.py::test_they_are_asked_for_and_change_no_id"),
    Mutation("statistics/robustness.py", "mean_y - slope * mean_x", "mean_y", "test_robustness.py::test_the_fit_is_least_squares_between_logits"),
    Mutation("reporting/robustness.py", "return self.there - self.expected", "return self.there - self.here", "test_robustness.py::test_a_model_on_the_line_is_not_robust"),
    Mutation("evaluation/conventions.py", "for label, one in enumerate(every) if one in wanted", "for label, one in enumerate(every[: len(wanted)])", "test_robustness.py::test_subsets_are_those_of_their_authors"),
    Mutation("models/tokens.py", "(longer[:, :context] != short).any(dim=1) | (longer[:, context] != longer[0, context])", "(longer[:, context] != longer[0, context])", "evaluation/test_long_captions.py::test_padding_may_be_the_end_token"),
    Mutation("models/tokens.py", "tokenizer(some, context_length=context + 1)", "tokenizer(some, context_length=context + 2)[:, : context + 1]", "evaluation/test_long_captions.py::test_which_texts_the_context_cuts"),
    Mutation("evaluation/evaluator.py", "[text].double().mean()", ".double().mean()", "evaluation/test_long_captions.py::test_equal_captions_count_each"),
    Mutation("node/known_results.py", "            sorted(metrics),\n", "", "evaluation/test_start.py::test_what_a_number_depends_on"),
    Mutation("node/known_results.py", "            weights.digest,\n", "", "evaluation/test_start.py::test_what_a_number_depends_on"),
    Mutation("node/known_results.py", "    names = (*one.metrics, *one.undefined)", "    names = (*one.metrics,)", "evaluation/test_start.py::test_known_numbers_are_those_that_were_measured"),
    # searching, tracking
    Mutation("searching/fastbo.py", "math.ceil(policy.promoted_share", "math.floor(policy.promoted_share", "searching/test_policy.py"),
    Mutation("searching/pausing_halving.py", "len(reached) // policy.reduction", "-(-len(reached) // policy.reduction)", "searching/test_policy.py"),
    Mutation("searching/gp.py", "(ranks - 0.5) / len(losses)", "ranks / (len(losses) + 1)", "searching/test_policy.py::test_normal_scores_are_those_of_salinas"),
    Mutation("tracking/projection.py", 'cells[0].run.identity.payload.items() if key != "seed"', "cells[0].run.identity.payload.items()", "tracking/test_projection.py"),
    # integrity
    Mutation("runs/integrity.py", "before = {} if record.seal is None else record.seal.files", "before: dict[str, str] = {}", "test_integrity.py::test_new_evaluations_are_sealed_and_hide_no_earlier_change"),
    Mutation("runs/integrity.py", "record.seal is not None and record_digest(table) != record.seal.record", "False", "test_integrity.py"),
    Mutation("runs/integrity.py", "if record.steps != steps:", "if record.steps > steps:", "test_integrity.py"),
    Mutation("runs/folder.py", "(found := digest(table[\"identity\"])) != self.id or table", "(found := digest(table[\"identity\"])) and table", "test_integrity.py"),
    Mutation("features/resumable_array.py", "stated.get(\"of\", _name(path)) == _name(path) and ", "", "features/test_features.py"),
    Mutation("training/checkpoint.py", "(bad := archive.testzip()) is not None", "(bad := None) is not None", "node/test_damage.py"),
    Mutation("execute/verify_report.py", "alone = max(variance - residual, 0.0)", "alone = variance", "reporting/test_verify_report.py"),
    Mutation("execute/verify_report.py", "tested[name].interval(1 - 0.05 / len(tested))", "_bounds(arm[\"simultaneous\"])", "reporting/test_verify_report.py"),
    Mutation("execute/verify_report.py", "abs(self.mean) - margin", "-abs(self.mean) - margin", "reporting/test_verify_report.py", fast=True),
    Mutation("reporting/sections/samples.py", "*(test.p for test in tests.values()), *unread]", "*(test.p for test in tests.values())]", "reporting/test_two_errors.py"),
    Mutation("reporting/sections/samples.py", " or not told.equals(self._samples.table)", "", "reporting/test_samples.py"),
    Mutation("execute/verify.py", "deviations.setdefault(place if groups is None else groups[place], [])", "deviations.setdefault(place, [])", "test_integrity.py::test_verify_derives_every_number_again"),
    Mutation("searching/event_check.py", "if list(event[\"had\"]) != list(self._run_ids(event[\"values\"])):", "if False:", "searching/test_driver.py"),
    Mutation("base/sums.py", "if not os.path.lexists(folder / SUMS):", "if True:", "data/test_inspection.py::test_a_damaged_world_is_generated_again"),
    Mutation("data/sources/inspection.py", " and stated in (None, digest([file.parent.name, stored]))", "", "data/test_inspection.py::test_a_report_of_an_index_is_its_own"),
    Mutation("searching/configurations.py", "folder.record(run.identity)", "folder.record()", "searching/test_driver.py::test_what_is_no_warm_start_is_said"),
    Mutation("execute/publish.py", "search.search(_searchable(folder / name))", "search.search(read_bytes(folder / name))", "test_publish.py::test_a_name_in_a_compressed_column_is_found"),
    # parts by kind
    Mutation("base/registry.py", "        if builder is None:\n            raise unknown_kind(spec, self.part, self._builders)\n", "        builder = builder or next(iter(self._builders.values()))\n", "test_joints.py"),
    # on a GPU: each row takes a cure away
    Mutation("models/fitting.py", "    torch.cuda.set_device(device)\n", "", "gpu/test_right.py::test_a_run_has_its_own_gpu_as_the_current_device"),
    Mutation("losses/chunks.py", "with torch.cuda.device(cosines.device):", "with torch.enable_grad():", "gpu/test_right.py::test_the_kernel_is_launched_on_its_tensors_device"),
    Mutation("parallel/process_group.py", "        torch.cuda.set_device(device)  # in this thread too\n", "        pass\n", "gpu/test_groups.py"),
    Mutation("parallel/process_group.py", 'device_id=device if device.type == "cuda" else None', "device_id=None", "gpu/test_groups.py"),
    Mutation("parallel/process_group.py", "timeout=PATIENCE,", "timeout=LONG_PATIENCE,", "gpu/test_groups.py"),
    Mutation("parallel/process_group.py", "dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)", "dist.all_reduce(flag, dist.ReduceOp.MAX)", "gpu/test_groups.py"),
    Mutation("parallel/process_group.py", "process.local_size > (gpus", "process.local_size > 2 * (gpus", "gpu/test_right.py::test_each_process_of_a_run_has_a_gpu_of_its_own"),
    Mutation("training/mining_step.py", "torch.from_numpy(values).to(device)", "torch.from_numpy(values)", "gpu/test_right.py::test_no_cpu_tensor_in_a_device_group"),
    Mutation("models/fitting.py", 'os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")', "pass", "gpu/test_right.py::test_a_deterministic_run"),
    Mutation("losses/chunks.py", "            place = cosines.add_(1).mul_(bins / 2).long().clamp_(max=bins - 1)\n            counts += torch.bincount(place.view(-1), minlength=bins)\n", "            counts += torch.histc(cosines, bins, -1, 1)\n", "gpu/test_right.py::test_a_deterministic_run"),
    Mutation("evaluation/multilabel.py", "order).long()", "order).float()", "gpu/test_right.py::test_average_precision_is_deterministic"),
    Mutation("training/micro_batch_probe.py", "tokens=longest_texts(batch.tokens)", "tokens=batch.tokens", "gpu/test_right.py::test_the_probe_tries_the_longest_texts_and_the_whole_loss"),
    Mutation("training/micro_batch_probe.py", "    longest = tokens.clamp(min=1, max=max(end - 1, 1))\n", "    longest = tokens.clone()\n", "gpu/test_right.py::test_the_probe_tries_the_longest_texts_and_the_whole_loss"),
    Mutation("training/micro_batch_probe.py", "objective(_repeated(pairs, processes))", "objective(pairs)", "gpu/test_right.py::test_the_probe_tries_the_longest_texts_and_the_whole_loss"),
    Mutation("training/micro_batch_probe.py", "if miner is not None:", "if False:", "gpu/test_right.py::test_the_probe_tries_the_longest_texts_and_the_whole_loss"),
    Mutation("training/micro_batch_probe.py", "if processes > 1:", "if False:", "gpu/test_right.py::test_the_probe_tries_the_longest_texts_and_the_whole_loss"),
    Mutation("execute/local/executor.py", 'failure.cause == "out_of_memory_gpu" and self._can_shrink(folder)', "False", "head/test_conduct.py::test_out_of_gpu_memory_is_tried_again_with_a_smaller_micro_batch"),
    Mutation("execute/local/executor.py", "slot * run.experiment.resources.processes % self._gpus", "slot % self._gpus", "head/test_conduct.py::test_runs_at_a_time_have_gpus_of_their_own"),
    Mutation("execute/local/processes.py", "max(gpus // processes, 1)", "gpus", "head/test_conduct.py::test_profiles_and_jobs"),
    Mutation("training/speed.py", "except Exception as error:  #", "except ValueError as error:  #", "gpu/test_right.py::test_a_statistic_kills_no_run"),
    Mutation("training/speed.py", "            torch.enable_grad(),\n", "            torch.no_grad(),\n", "gpu/test_right.py::test_an_attention_pool_is_counted gpu/test_right.py::test_a_vit_is_counted_in_full"),
    Mutation("training/batches.py", 'return None if device.type == "cuda" else 0', "return 0", "gpu/test_fast.py::test_the_loader_on_a_gpu"),
    Mutation("training/batches.py", 'pin=towers.device.type == "cuda"', "pin=False", "gpu/test_fast.py::test_the_loader_on_a_gpu"),
    Mutation("training/batches.py", "        self._images.check_shared_memory(self._part.stop - self._part.start)\n", "", "gpu/test_fast.py::test_batches_that_do_not_fit_into_shared_memory"),
    Mutation("base/machine.py", "(PREFETCHED + 1) * images", "PREFETCHED * images", "gpu/test_fast.py::test_batches_that_do_not_fit_into_shared_memory"),
    Mutation("data/dataset/loader.py", "np.array_split(samples, min(self.workers, len(samples)))", "[samples]", "data/test_loader.py::test_each_batch_is_shared_by_the_workers"),
    Mutation("training/precision.py", '            torch.backends.cudnn.allow_tf32 = name == "tf32"', "            pass", "gpu/test_fast.py::test_tf32_is_only_what_was_asked_for"),
    Mutation("evaluation/towers.py", '            torch.backends.cudnn.allow_tf32 = False\n            for', "            for", "gpu/test_fast.py::test_tf32_is_only_what_was_asked_for"),
    Mutation("evaluation/towers.py", '                torch.backends.cudnn.allow_tf32 = False\n\n', "\n", "gpu/test_fast.py::test_evaluation_in_tf32_is_that_of_the_towers_alone"),
    Mutation("evaluation/towers.py", "encode(self._sent(batch))", "encode(batch.to(self._device))", "gpu/test_fast.py::test_evaluation_copies_while_the_gpu_computes"),
    Mutation("evaluation/towers.py", "if len(waiting) == 2:", "if waiting:", "gpu/test_fast.py::test_evaluation_copies_while_the_gpu_computes"),
    Mutation("evaluation/towers.py", "        for finite in waiting:\n            _require(finite, tower)\n", "", "gpu/test_fast.py::test_no_batch_with_a_nan_is_missed"),
    Mutation("evaluation/conditions.py", '        "precision": spec.precision,\n', "", "gpu/test_fast.py::test_tf32_has_a_protocol_of_its_own"),
    Mutation("node/known_measurements.py", 'texts[kept["text"]].astype', "texts.astype", "evaluation/test_start.py::test_metrics_of_what_was_measured_are_those_of_an_evaluation"),
    Mutation("node/known_measurements.py", "shared, place(), code()]", "shared]", "evaluation/test_start.py::test_what_a_number_depends_on"),
    Mutation("reporting/references.py", 'side = "text" if "I2T"', 'side = "text" if "T2I"', "evaluation/test_mteb.py::test_result_files_are_references"),
    Mutation("node/mteb_model.py", "return torch.stack(parts).sum(dim=0)", "return parts[0]", "evaluation/test_mteb.py::test_features_are_those_of_an_evaluation"),
    Mutation("models/transfer.py", "        tensor = tensor.pin_memory()\n", "        pass\n", "gpu/test_fast.py::test_waits_of_a_step"),
    Mutation("training/mining_step.py", "return sent(features, device)", "return sent(sent(features, device).clone().cpu(), device)", "gpu/test_fast.py::test_teacher_features_are_copied_once"),
    Mutation("training/checkpoint.py", "copy_(one.detach(), non_blocking=True)", "copy_(one.detach())", "gpu/test_fast.py::test_a_checkpoint_is_one_copy"),
    Mutation("training/provenance.py", ', "sigmoid_kernel": sigmoid_kernel(device)}', "}", "gpu/test_right.py::test_a_deterministic_run"),
    Mutation("base/machine.py", 'len(list(_DEVICES.glob("nvidia[0-9]*"))) or ', "", "head/test_machine.py::test_gpus_are_counted"),
    Mutation("node/operations.py", "images = 1 + loss.views_read", "images = 1", "node/test_operations.py::test_the_count_equals_the_formula"),
    Mutation("planning/estimate.py", "if states[run.id] is not State.DONE\n    }\n    runs_of", "if states[run.id]\n    }\n    runs_of", "node/test_operations.py::test_hours_are_operations_over_peak_and_utilisation"),
    # results: the tables of docs/results.md
    Mutation("../benchmarks/results/tables.py", '1 - (1 - CONFIDENCE) / max(family, 1)', 'CONFIDENCE', "test_results.py::test_claims_have_verdicts_corrected_intervals_and_a_count"),
    Mutation("../benchmarks/results/page.py", "traced = _numbers(page if place == 0 else section)", "traced = _numbers(page)", "test_results.py::test_a_changed_page_is_told"),
)  # fmt: skip


def stale(mutations: Iterable[Mutation] = MUTATIONS) -> list[str]:
    """What is wrong with the table: rows whose old text is not in its file exactly once, or without tests."""
    found = []
    for number, one in enumerate(mutations):
        file = ROOT / "harness" / one.file
        count = file.read_text(encoding="utf-8").count(one.old) if file.is_file() else 0
        if count != 1:
            found.append(f"{number}: {one.file} has {one.old!r} {count} times")
        for test in one.tests.split():
            if not (ROOT / "tests" / test.partition("::")[0]).is_file():
                found.append(f"{number}: there is no tests/{test}")
    return found


@contextmanager
def checkout() -> Iterator[Path]:
    """A copy of this checkout to put faults into."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        yield copy


@dataclass(frozen=True)
class Trial:
    """The tests of a mutation, which run in a child process."""

    mutation: Mutation
    copy: Path
    before: str
    """The file without the fault."""
    pid: int
    begun: float

    @classmethod
    def begin(cls, mutation: Mutation, copy: Path, *, unchanged: bool = False) -> Trial:
        """Put the fault into `copy`, unless it is to stay `unchanged`, and fork a child that runs the tests there."""
        file = copy / "harness" / mutation.file
        before = file.read_text(encoding="utf-8")
        if not unchanged:
            file.write_text(before.replace(mutation.old, mutation.new), encoding="utf-8")
        if (pid := os.fork()) == 0:
            _run_tests(mutation, copy)
        return cls(mutation, copy, before, pid, time.monotonic())

    def status(self) -> int | None:
        """The exit status of the tests; None while they run. A test that hangs counts as one that fails."""
        pid, code = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0 and time.monotonic() - self.begun > LIMIT_S:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return 1
        return None if pid == 0 else os.waitstatus_to_exitcode(code)

    def end(self) -> str:
        """Take the fault out of the copy; returns what the tests printed."""
        (self.copy / "harness" / self.mutation.file).write_text(self.before, encoding="utf-8")
        return (self.copy / OUTPUT).read_text(encoding="utf-8", errors="replace")


def warm() -> None:
    """Import what most tests import, once: children that are forked have it. Nothing of harness is among it."""
    import clip_benchmark
    import hypothesis
    import open_clip
    import pytest
    import sklearn.linear_model
    import torch

    torch.set_num_threads(1)
    assert all((clip_benchmark, hypothesis, open_clip, pytest, sklearn))
    assert "harness" not in sys.modules


def _run_tests(mutation: Mutation, copy: Path) -> NoReturn:
    """In the child: pytest in the copy. Never returns."""
    code = 3
    try:
        with (copy / OUTPUT).open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), COPY: str(copy)}
        sys.path[:] = [str(copy), *(one for one in sys.path if one not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        import pytest

        tests = [f"tests/{test}" for test in mutation.tests.split()]
        code = int(
            pytest.main(
                ["-x", "-q", "-m", "not browser and not slurm", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
            )
        )
    finally:
        sys.stdout.flush()
        os._exit(code)


def survivors(mutations: Iterable[Mutation], jobs: int = 1, *, unchanged: bool = False) -> list[Mutation]:
    """The mutations that no named test notices; `jobs` are tried at a time, each in a copy of its own.

    Raises:
        RuntimeError: pytest did not get as far as a test, so nothing is known.
    """
    waiting, running, alive = deque(mutations), list[Trial](), list[Mutation]()
    with ExitStack() as stack:
        free = [stack.enter_context(checkout()) for _ in range(jobs)]
        while waiting or running:
            while waiting and free:
                running.append(Trial.begin(waiting.popleft(), free.pop(), unchanged=unchanged))
            for trial in list(running):
                if (status := trial.status()) is None:
                    continue
                running.remove(trial)
                free.append(trial.copy)
                said = trial.end()
                if status not in (0, 1):
                    raise RuntimeError(f"pytest ended with {status} for {trial.mutation}:\n{said[-3000:]}")
                _tell(trial, status, said)
                if status == 0:
                    alive.append(trial.mutation)
            time.sleep(0.05)
    return alive


def _tell(trial: Trial, status: int, said: str) -> None:
    how = next((line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), "")[:90]
    what, took = "killed  " if status else "SURVIVED", time.monotonic() - trial.begun
    print(f"{MUTATIONS.index(trial.mutation):3} {what} {took:5.1f} s  {trial.mutation.file}  {how}", flush=True)


def main() -> int:
    """Try the mutations; 1 where one survives or the table is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers of rows in the table")
    parser.add_argument("--fast", action="store_true", help="only the rows that `make test` tries")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--unchanged", action="store_true", help="run the tests without the faults: all have to pass")
    asked = parser.parse_args()
    if wrong := stale():
        print("\n".join(wrong))
        return 1
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    chosen = [MUTATIONS[number] for number in asked.only or range(len(MUTATIONS))]
    chosen = [one for one in chosen if one.fast or not asked.fast]
    begun = time.monotonic()
    if not asked.fast:
        warm()
    alive = survivors(chosen, asked.jobs, unchanged=asked.unchanged)
    if asked.unchanged:
        print(f"the tests of {len(alive)} of {len(chosen)} rows pass without the fault")
        return 0 if len(alive) == len(chosen) else 1
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutations killed in {time.monotonic() - begun:.0f} s")
    for one in alive:
        print(f"survived: {one.file}: {one.old!r} -> {one.new!r} ({one.tests})")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
