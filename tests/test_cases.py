"""Kinds of trouble that people report in public about data, shells and checkpoints, and the tests that hold each right.

Each kind has inputs of our own, and beside what must not happen a sibling that must still work.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DATA, SETS = "data/test_as_people_have_it.py", "evaluation/test_evaluate_sets.py"
WEIGHTS = "node/test_checkpoints.py"
KINDS = {
    "keys that begin anew in each shard": (DATA, "a_key_is_unique_within_its_shard"),
    "macOS ._ members between": (DATA, "members_without_a_key_are_passed_over_and_counted"),
    "embedded images with repeated base names": (DATA, "embedded_images_are_known_by_table_and_row"),
    "a stray quote in a TSV": (DATA, "a_stray_quote_in_a_tsv_is_text"),
    "a TSV that is quoted": (DATA, "a_tsv_that_is_quoted_is_read_so"),
    "lists as pandas writes them": (DATA, "pandas_lists_become_captions_and_are_said"),
    "texts with brackets that are no lists": (DATA, "texts_with_brackets_are_no_lists"),
    "a folder with all splits": (DATA, "splits_are_asked_about"),
    "a folder with one split": (DATA, "one_split_and_folders_that_are_called_like_splits_above_are_no_question"),
    "brackets and braces in a folder above": (DATA, "only_what_is_written_as_a_pattern_is_one"),
    "a json that is not asked for": (DATA, "a_json_that_nothing_needs_spoils_no_sample"),
    "a json with a BOM that is asked for": (DATA, "a_json_with_a_byte_order_mark_is_read"),
    "RANK and WORLD_SIZE in the shell": ("training/test_processes.py", "workers_train_alone_in_an_outer_shell"),
    "processes that torchrun starts": ("training/test_processes.py", "who_a_process_is"),
    "a wait that Ctrl-C ends": ("training/test_processes.py", "a_stop_ends_the_wait_for_processes_that_never_come"),
    "a stranger's job of any name": ("execute/test_slurm.py", "a_job_of_a_stranger_may_have_any_name"),
    "a BOM in names and captions": (SETS, "a_byte_order_mark_is_no_part_of_a_name_or_caption"),
    "a separator that editors hide": (SETS, "separators_that_editors_do_not_show_are_refused"),
    "shards beyond nshards.txt": (SETS, "more_shards_than_are_counted_are_refused"),
    "blank lines, names twice": (SETS, "what_looks_wrong_about_a_set_is_said_and_moves_its_digest"),
    "an experiment deleted in MLflow": (
        "tracking/test_sync.py",
        "what_a_user_deleted_comes_back_only_on_demand_and_never_twice",
    ),
    "checkpoints however they are wrapped": (WEIGHTS, "a_checkpoint_is_read_however_it_is_wrapped"),
    "checkpoints that do not fit": (WEIGHTS, "what_does_not_fit_is_listed_by_name"),
    "SigLIP of transformers": (WEIGHTS, "hugging_faces_siglip_has_the_same_features"),
    "SigLIP of open_clip": (WEIGHTS, "open_clips_siglip_folder_is_read_with_its_tokenizer_and_preprocessing"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_test(kind: str) -> None:
    file, name = KINDS[kind]
    assert re.search(rf"^def test_{name}\(", (Path(__file__).parent / file).read_text(encoding="utf-8"), re.MULTILINE)
