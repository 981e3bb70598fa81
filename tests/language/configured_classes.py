"""The classes and embeddings that a config describes, by an encoder that is at hand."""

from ovd_d2.language import configured_class_embedder, configured_vocabulary


def build(
    vocabulary="",
    train_datasets=("lvis_v1_train",),
    text_embeddings="",
    text_encoder="hashing:a",
    prompts="photo",
):
    classes = configured_vocabulary(vocabulary, train_datasets)
    embedder = configured_class_embedder(text_embeddings, text_encoder, prompts, False, "cpu")
    return classes, embedder.embed(classes)
