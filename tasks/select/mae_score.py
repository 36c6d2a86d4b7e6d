"""MAE-Score: the generated clips that a classifier is surest of (S4, §4.2 (b)).

Shapes: N clips, D features, K classes.
"""

from __future__ import annotations

import numpy as np

from vidistill.tasks.methods import Material
from vidistill.tasks.select.embedding import EmbeddingSelector, Pick, highest, real_embeddings


class MAEScore(EmbeddingSelector):
    """The VPC clips with the highest probability of their own class.

    Published: "scores obtained from a pretrained VideoMAE model"; which score is not stated, and the classifiers that
    are published know other classes. So the classifier is a linear one, fitted to the real training clips' embeddings
    (L2-regularised logistic regression of standardised features, which is convex: the seed changes nothing).
    """

    learns = True

    def picker(self, material: Material) -> Pick:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        labels_N = material.clips.labels_N
        head.fit(real_embeddings(material), labels_N)
        column = {int(label): index for index, label in enumerate(np.unique(labels_N))}
        return lambda emb_ND, label: highest(head.predict_log_proba(emb_ND)[:, column[label]], material.ipc)
