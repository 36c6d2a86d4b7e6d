"""Streams: the numbers by which the generators of one seed are told apart.

A draw is `generator(seed, …, STREAM)`: the same seed gives each role numbers of its own, and a run that was killed
draws the same ones again. Without a number are drawn first weights that are the one role of their seed (CSTA, VST-UNet,
random features), sprites, and which detections are tracked. A number may be shared by stages that draw from other laws
or with other integers; where two roles of one stage share one, the comment says so. Changing a value changes what its
stage makes: raise its version.
"""

from __future__ import annotations

# How networks learn
EPOCH_ORDER = 1  # the order of clips in an epoch
DROPOUT = 2
TEACHER_VIEWS = 3  # views, crops and flips of the clips that a teacher sees
MIX = 6  # VideoMix: who is mixed, with whom, where
STUDENT_VIEWS = 7  # crops and flips of the clips that a student sees
STUDENT_VARIANTS = 21  # which variant of an instance a student sees
TEACHER_WEIGHTS = 41  # its first weights
STUDENT_WEIGHTS = 42  # its first weights, order and dropout
TRIAL_WEIGHTS = 43
EXPERT_WEIGHTS = 45  # its first weights, order, views and dropout
TEST_FLIPS = 44  # of test clips, under the common benchmark's protocol

# Where sets begin
CORESET = 4  # which clips of a class
NOISE_START = 5

# The pool
AUTOENCODER_FRAMES = 4
DIFFUSION_BATCH = 5
FIRST_NOISE = 6  # a generated clip's noise
STEP_NOISE = 7  # noise within the sampling of a clip

# Matching
REAL_ROWS = 11  # which real clips of a class
REAL_VIEWS = 12  # their views and flips
FRESH_NETWORK = 13  # an iteration's network
DSA = 14
SET_VARIANTS = 15  # which variants of a set's instances a loss sees
EXPERT_START = 16  # MTT: which expert, which epoch
STUDENT_ORDER = 17  # MTT: the set's clips, minibatch by minibatch
DC_INNER = 18  # DC: variants in the inner loop
FREPO_BIRTH = 16
FREPO_PICK = 17
FREPO_DROPOUT = 18
FREPO_ROWS = 19
FREPO_VARIANTS = 20
STILL_START = 19  # Static-DC and SFVD: which frame an image begins as
STILL_FRAMES = 20  # Static-DC: which frames of real clips
HALLUCINATOR = 22
COMPANIONS = 23  # SFVD-T: the real clip of an instance

# Crops
DETECTOR_BATCH = 11
TRACKED_VIDEOS = 12
MOSAIC_GROUPS = 13

# Coded sets
CODED_VIEWS = 41  # parts of the pictures

# Selections
CSTA_ORDER, CSTA_DRAW, CSTA_DROPOUT = 31, 32, 33
CLUSTERS = 34
CLUSTER_ORDER = 35
UNET_ORDER = 36
