"""Checkpoints of GLIP (arXiv 2112.03857, github.com/microsoft/GLIP): GLIP-T(A), GLIP-T, GLIP-L.

Its parameters are ours under other names, in the same order of colours (BGR), pixel mean and
standard deviation; boxes and scores agree where ``MODEL.GLIP.COARSE_OFFSETS`` is "buffer".

====================================  ============================================================
theirs                                ours
====================================  ============================================================
``backbone.body``                     ``backbone.bottom_up`` (Detectron2's Swin)
``backbone.fpn.fpn_inner2`` .. 4      ``backbone.fpn_lateral3`` .. 5
``backbone.fpn.fpn_layer2`` .. 4      ``backbone.fpn_output3`` .. 5
``backbone.fpn.top_blocks``           ``backbone.top_block``
``language_backbone.body.model``      ``text_backbone.model``
``rpn.head``                          ``head``, see :data:`_HEAD` and :data:`_BLOCK`
====================================  ============================================================

Not taken over: ``rpn.head.cls_logits`` (neither loss nor scores use it), the masked-language head,
and buffers that are computed anew (anchors, BERT's ``position_ids``).
"""
