"""Mutations: changes that break the library, and the tests that must see them.

To add one, three lines: the file, what is wrong with it, and the tests (pytest's names of files or tests) of which at
least one must fail; a text that occurs once in the file; and what stands there instead. `test_mutations.py` applies
each to a copy of the rooms and runs those tests: `pytest -m slow tests/test_mutations.py -k mtt` tries those of MTT.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A change of one text in one file, and the tests that must fail by it."""

    file: str
    why: str
    tests: tuple[str, ...]
    text: str
    replacement: str

    @property
    def name(self) -> str:
        return f"{self.file.removesuffix('.py')}: {self.why}"


def of(file: str, *names: str) -> tuple[str, ...]:
    """These tests of a file under `tests`, or all of them."""
    return tuple(f"tests/{file}::{name}" for name in names) or (f"tests/{file}",)


TSGF = of("tasks/test_tsgf.py")
ALGORITHM_1 = of("tasks/test_tsgf.py", "test_two_steps_are_those_of_algorithm_1")
STUDENTS = of(
    "tasks/learning/test_evaluate.py",
    "test_an_online_student_sees_the_teachers_labels_for_the_very_clips_that_it_is_shown",
    "test_a_student_of_all_clips_sees_their_views_and_flips_and_hard_labels",
)
MIXED, LABELLED = (
    of("tasks/learning/test_relabel.py", name)
    for name in (
        "test_guided_mix_is_a_box_of_another_clip_in_the_frames_that_are_not_salient",
        "test_soft_labels_are_the_resting_teachers_for_the_clips_that_are_kept",
    )
)
CROPPED = of(
    "tasks/learning/test_training.py",
    "test_crops_zoom_into_an_upright_square_of_a_clip_the_same_in_all_of_its_frames",
)
DECODED = of("tasks/videos/test_decode.py")
SPLITS = of("tasks/videos/test_splits.py")
STORE = of("storage/test_store.py")
JOINED = of("tasks/match/test_match.py", "test_parts_that_keep_images_are_joined_by_their_images")
CORESETS = of("tasks/coreset/test_coreset.py")
SOURCES = of("tasks/select/test_sources.py")
QUALITY = of("tasks/generate/test_quality.py")
SAMPLED = of("tasks/generate/test_generate_pool.py", "test_a_learned_variance_is_what_ddpm_adds")
LATTE = of("models/test_latte.py")
CROPS = of("tasks/crops/test_crops.py")
PLAN = of("flows/test_planning.py")
PROGRESS = of(
    "flows/test_progress.py",
    "test_a_stage_says_that_it_begins_and_ends_and_something_every_thirty_seconds_in_between",
    "test_jobs_that_another_run_made_meanwhile_are_no_longer_expected",
    "test_what_a_job_has_taken_corrects_what_is_left",
)
ENDLESS = of("flows/test_stopping.py", "test_ctrl_c_where_nothing_listens")
KILLED = of("flows/test_stopping.py", "test_a_killed_run_leaves_no_process")
OWNED = of("flows/test_stopping.py", "test_a_killed_decoder_s_owner_takes_it_along")
BEST_CROP = of("tasks/crops/test_crops_method.py", "test_tracks_are_shared_and_crops_are_not")

# fmt: off
MUTATIONS = [
    # TSGF
    Mutation("tasks/tsgf.py", "the mask is dropped", ALGORITHM_1,
             "if parameters.mask:",
             "if False:"),
    Mutation("tasks/learning/saliency.py", "the mask is inverted", ALGORITHM_1,
             "room_BT = epsilon_B1 - s_BT",
             "room_BT = s_BT - epsilon_B1"),
    Mutation("tasks/tsgf.py", "L_reg is removed", ALGORITHM_1,
             "* ce + parameters.r_bn *",
             "* ce + 0 *"),
    Mutation("tasks/tsgf.py", "cross-entropy is ascended", ALGORITHM_1,
             "parameters.alpha_ce * ce +",
             "-parameters.alpha_ce * ce +"),
    Mutation("tasks/tsgf.py", "the teacher is in training mode", ALGORITHM_1,
             "logits_BK = teacher(x_BCTHW)",
             "logits_BK = teacher.train()(x_BCTHW)"),
    Mutation("tasks/tsgf.py", "L_reg takes unbiased variances", TSGF,
             "correction=0",
             "correction=1"),
    Mutation("tasks/tsgf.py", "pixels leave their range", ALGORITHM_1,
             "x_BCTHW.copy_(x_BCTHW.maximum(low_C).minimum(high_C))",
             "pass"),
    Mutation("tasks/tsgf.py", "the rate has no cosine", ALGORITHM_1,
             "0.5 * (1 + math.cos(math.pi * k / parameters.iterations))",
             "1.0"),
    Mutation("tasks/tsgf.py", "the mask is that of the clips after the step", ALGORITHM_1,
             "s_BT = saliency(before_BCTHW, parameters.saliency)",
             "s_BT = saliency(x_BCTHW, parameters.saliency)"),
    Mutation("tasks/tsgf.py", "Adam has torch's betas", ALGORITHM_1,
             "betas=(0.5, 0.9)",
             "betas=(0.9, 0.999)"),
    Mutation("tasks/learning/saliency.py", "the window looks ahead", TSGF,
             "total_BT[:, j:] += alpha_j * d_BT[:, : d_BT.shape[1] - j]",
             "total_BT[:, : d_BT.shape[1] - j] += alpha_j * d_BT[:, j:]"),
    # what students see
    Mutation("tasks/learning/relabel.py", "salient frames are mixed and still ones are not", MIXED,
             "s_BT <= threshold(",
             "s_BT >= threshold("),
    Mutation("tasks/learning/relabel.py", "each frame has a box of its own", MIXED,
             'if kind == "image" else box',
             'if kind == "tsgf" else box'),
    Mutation("tasks/learning/relabel.py", "clips are mixed with themselves", MIXED,
             "partner[order] = np.roll(order, 1)",
             "partner[order] = order"),
    Mutation("tasks/learning/relabel.py", "labels are those of the clips before the mix", LABELLED,
             "teacher_logits(teacher, made, clips, device)",
             "teacher_logits(teacher, distilled, clips, device)"),
    Mutation("tasks/learning/evaluate.py", "online targets are not refreshed after the mix", STUDENTS,
             "self._teacher(x_BCTHW)",
             "self._teacher(self._x_NCTHW[rows])"),
    Mutation("tasks/learning/evaluate.py", "online clips are not mixed", STUDENTS,
             "x_BCTHW = videomix(x_BCTHW,",
             "_ = videomix(x_BCTHW,"),
    Mutation("tasks/learning/evaluate.py", "the temperature is ignored", STUDENTS,
             "return (logits_BK / temperature)",
             "return logits_BK"),
    Mutation("tasks/learning/evaluate.py", "the student stops before its last step", STUDENTS,
             "training.train(network, draw, steps,",
             "training.train(network, draw, steps - 1,"),
    Mutation("tasks/learning/teacher.py", "the loaded teacher is in training mode", STUDENTS,
             "    return training.settled(network, device)",
             "    return training.placed(network, device).train()"),
    Mutation("tasks/learning/training.py", "crops are upside-down flips", CROPPED,
             "x_BCTHW = crop_some(x_BCTHW, crop_scale, random)",
             "x_BCTHW = x_BCTHW.flip(3)"),
    Mutation("tasks/learning/training.py", "clips are never mirrored", STUDENTS,
             "random.random(len(x_BCTHW)) < 0.5) if flips",
             "random.random(len(x_BCTHW)) < 0) if flips"),
    Mutation("tasks/learning/training.py", "SGD has no momentum", STUDENTS,
             "momentum=optimiser.momentum",
             "momentum=0"),
    # videos and the store
    Mutation("tasks/videos/decode.py", "a test set is normalised by its own pixels", DECODED,
             'if work.refs("statistics"):',
             "if False:"),
    Mutation("tasks/videos/decode.py", "statistics are those of the last view", DECODED,
             "centre = clips_VTHWC[0]",
             "centre = clips_VTHWC[-1]"),
    Mutation("tasks/videos/splits.py", "a split cuts groups", SPLITS,
             "return self.group or self.path",
             "return self.path"),
    Mutation("tasks/videos/splits.py", "a class may be moved whole", SPLITS,
             "for unit in ranked[1:-1]:",
             "for unit in ranked[1:]:"),
    Mutation("storage/store.py", "a writer that raised commits all the same", STORE,
             "yield attempt\n                    self._commit(attempt)\n                finally:",
             "yield attempt\n                finally:\n                    self._commit(attempt)"),
    Mutation("storage/store.py", "what is there is made again", STORE,
             "if self.has(ref):\n                    yield None",
             "if False:\n                    yield None"),
    Mutation("storage/store.py", "a flipped bit is not noticed", STORE,
             "if thorough and file_digest(path) != expected.sha256:",
             "if False:"),
    Mutation("storage/store.py", "a sweep takes what a living writer writes", STORE,
             'for path in found if path.name.split(".")[0] not in alive]',
             "for path in found]"),
    Mutation("storage/distilled.py", "joined parts are not in class order", JOINED,
             'order = np.argsort(labels_N, kind="stable")',
             "order = np.arange(len(labels_N))"),
    # coresets and selections
    Mutation("tasks/coreset/herding.py", "herding forgets what it chose", CORESETS,
             "total_D += emb_ND[chosen[-1]]",
             "pass"),
    Mutation("tasks/coreset/herding.py", "herding aims at the mean once", CORESETS,
             "(i + 1) * mean_D",
             "mean_D"),
    Mutation("tasks/coreset/k_center.py", "k-center looks at the last centre alone", CORESETS,
             "np.minimum(nearest_N, np.linalg.norm(emb_ND - emb_ND[chosen[-1]], axis=1))",
             "np.linalg.norm(emb_ND - emb_ND[chosen[-1]], axis=1)"),
    Mutation("tasks/coreset/k_center.py", "k-center begins with the first row", CORESETS,
             "emb_ND - emb_ND.mean(0)",
             "emb_ND - emb_ND[0]"),
    Mutation("tasks/coreset/random.py", "random draws with replacement", CORESETS,
             ".permutation(enough(clips, label, ipc))[:ipc]",
             ".choice(enough(clips, label, ipc), ipc)"),
    Mutation("tasks/coreset/features.py", "coresets are the first clips", CORESETS,
             "own[self.pick(emb_ND, material.ipc)]",
             "own[: material.ipc]"),
    Mutation("tasks/methods.py", "a pool selection is another's", SOURCES,
             "tasks.select.csta:CSTA",
             "tasks.select.mae_score:MAEScore"),
    Mutation("tasks/select/mae_score.py", "MAE-Score is that of the first class", SOURCES,
             "[:, column[label]]",
             "[:, column[0]]"),
    Mutation("tasks/select/embedding.py", "the lowest scores are kept", SOURCES,
             "np.argsort(-score_N",
             "np.argsort(score_N"),
    Mutation("tasks/select/csta.py", "CSTA learns who is not wanted", SOURCES,
             "score_N[order_N] = np.linspace(1, 0, len(emb_ND))",
             "score_N[order_N] = np.linspace(0, 1, len(emb_ND))"),
    Mutation("tasks/select/dm_mmd.py", "DM-MMD goes away from the class", SOURCES,
             "- 2 * to_all_N[rows].mean()",
             "+ 2 * to_all_N[rows].mean()"),
    Mutation("tasks/select/dm_mmd.py", "DM-MMD ignores its clusters", SOURCES,
             "cluster in (None, cluster_N[row])",
             "True"),
    Mutation("tasks/select/tac_dt.py", "TAC-DT takes the outermost of each cluster", SOURCES,
             "rows[away.argmin()]",
             "rows[away.argmax()]"),
    Mutation("tasks/select/tac_dt.py", "TAC-DT joins by single linkage", SOURCES,
             'linkage="ward"',
             'linkage="single"'),
    Mutation("models/vst_unet.py", "VST-UNet flees from what it is to represent", SOURCES,
             "return 1 - torch.exp(-expected_N.mean())",
             "return torch.exp(-expected_N.mean())"),
    Mutation("models/vst_unet.py", "VST-UNet seeks likeness", SOURCES,
             "loss = loss + diversity * diversity_loss",
             "loss = loss - diversity * diversity_loss"),
    # the pool
    Mutation("tasks/generate/sample.py", "learned variances are not sampled", SAMPLED,
             'variance = "learned_range" if network.learned_sigma',
             'variance = "fixed_large" if network.learned_sigma'),
    Mutation("models/latte.py", "guidance is one too strong", LATTE,
             "none + scale * (noise - none)",
             "noise + scale * (noise - none)"),
    Mutation("models/diffusion.py", "the bound counts the last step", LATTE,
             "counted = (steps_B > 0)",
             "counted = (steps_B >= 0)"),
    Mutation("tasks/generate/quality.py", "copies are never counted", QUALITY,
             "np.quantile(among_M, 0.01)",
             "0.0"),
    Mutation("tasks/generate/quality.py", "training clips are their own neighbours", QUALITY,
             "nearest(real_MD, real_MD, itself=True)",
             "nearest(real_MD, real_MD)"),
    Mutation("tasks/generate/quality.py", "the Fréchet distance is that of the real clips", QUALITY,
             "fvd=frechet_distance(made_ND, real_MD)",
             "fvd=frechet_distance(real_MD, real_MD)"),
    Mutation("tasks/generate/quality.py", "accuracy counts what is wrong", QUALITY,
             ".argmax(1) == pool.labels_N",
             ".argmax(1) != pool.labels_N"),
    # OptDistill
    Mutation("tasks/crops/track.py", "windows cover the width alone", CROPS,
             "wide = max(box_width, box_height * aspect)\n",
             "wide = box_width\n"),
    Mutation("tasks/crops/mosaic.py", "the worst crops make mosaics", CROPS,
             "key=lambda crop: (-crop.score, crop.path))",
             "key=lambda crop: (crop.score, crop.path))"),
    Mutation("tasks/crops/mosaic.py", "crops are not grouped by length", CROPS,
             "key=lambda crop: (crop.length, crop.path))",
             "key=lambda crop: crop.path)"),
    Mutation("tasks/crops/mosaic.py", "crops are slowed to the longest", CROPS,
             "length = min(max(len(crop_LHWC), frames) for crop_LHWC in group)",
             "length = max(max(len(crop_LHWC), frames) for crop_LHWC in group)"),
    Mutation("tasks/crops/cutting.py", "the first frames of a crop are kept, not the middle ones", CROPS,
             "start = (len(crop_LHWC) - frames) // 2",
             "start = 0"),
    Mutation("tasks/crops/cutting.py", "a video gives its worst crop", BEST_CROP,
             "best = int(np.argmax(scores))",
             "best = int(np.argmin(scores))"),
    Mutation("tasks/crops/score.py", "the loss is preferred", CROPS,
             "float(log_probabilities_K[place])",
             "-float(log_probabilities_K[place])"),
    Mutation("models/regions.py", "tiles overlap", CROPS,
             "divmod(number, grid**2)",
             "divmod(number, grid)"),
    # Plan and progress
    Mutation("flows/costs.py", "all clips are trained on for a set's steps", PLAN,
             'own["full_steps"], own["full_optimiser"]',
             'own["steps"], own["full_optimiser"]'),
    Mutation("flows/costs.py", "a pool's clips take no bytes", PLAN,
             'own["count"] * data.pixels * (3 * STORED + latents)',
             "1e4"),
    Mutation("flows/estimates.py", "what was measured says nothing", PLAN,
             "ratio = (measured + believed * ratio) / (default + believed)",
             "ratio *= measured + believed >= 0"),
    Mutation("flows/estimates.py", "what another machine took counts", PLAN,
             'made.record.get("machine") != machine() or ',
             ""),
    Mutation("flows/estimates.py", "jobs do not wait for threads", PLAN,
             "if not wanted[ref] or (not waits and (taken + wanted[ref] <= limit or not taken)):",
             "if wanted:"),
    Mutation("flows/estimates.py", "every job has a worker", PLAN,
             "while ready and len(held) + len(running) < workers:",
             "while ready:"),
    Mutation("flows/reasons.py", "all data are the same", PLAN,
             "return not mine or bool(mine & theirs)",
             "return True"),
    Mutation("flows/display.py", "a log is told every three seconds", PROGRESS,
             "BETWEEN_SECONDS = 30.0",
             "BETWEEN_SECONDS = 3.0"),
    Mutation("flows/progress.py", "what another run made is still expected", PROGRESS,
             "stage.total - 1, stage.cached + 1",
             "stage.total, stage.cached"),
    Mutation("flows/progress.py", "what a job has taken corrects nothing", PROGRESS,
             "self.plan.estimates.finished(job, now - running.since)",
             "pass"),
    # Stopping
    Mutation("flows/stopping.py", "a run that comes to no step goes on", ENDLESS,
             "select.select([told], [], [], PATIENCE_SECONDS)",
             "select.select([told], [], [])"),
    Mutation("flows/server.py", "Ctrl-C reaches the server", KILLED,
             "start_new_session=True",
             "start_new_session=False"),
    Mutation("flows/server.py", "the server outlives its owner", KILLED,
             "os.read(sys.stdin.fileno(), 1)",
             "time.sleep(600)"),
    Mutation("tasks/videos/decoder_child.py", "a decoder outlives its owner", OWNED,
             "    waiting.poll()",
             "    threading.Event().wait()"),
]
# fmt: on
