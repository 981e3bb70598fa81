"""Names of the classes of semantic data sets."""

from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, COCO_CATEGORIES

IGNORE_LABEL = 255  # of pixels without a class, where the metadata do not say otherwise
BACKGROUND = "background"
OTHERS = "others"  # what a few-shot class is told apart from

# As GroupViT names them; the data set says diningtable, pottedplant and tvmonitor.
VOC_20 = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("table", "dog", "horse", "motorbike", "person", "plant", "sheep", "sofa", "train"),
    "monitor",
)
# LSeg's names of the same classes, the data set's own.
PASCAL_5I = tuple(
    {"table": "diningtable", "plant": "pottedplant", "monitor": "tvmonitor"}.get(name, name)
    for name in VOC_20
)
CONTEXT_59 = (
    *("airplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book"),
    *("bottle", "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth"),
    *("computer", "cow", "cup", "curtain", "dog", "door", "fence", "floor", "flower", "food"),
    *("grass", "ground", "horse", "keyboard", "light", "motorbike", "mountain", "mouse"),
    *("person", "plate", "platform", "plant", "road", "rock", "sheep", "shelves", "sidewalk"),
    *("sign", "sky", "snow", "sofa", "table", "track", "train", "tree", "truck", "monitor"),
    *("wall", "water", "window", "wood"),
)
COCO_80 = tuple(c["name"] for c in sorted(COCO_CATEGORIES, key=lambda c: c["id"]) if c["isthing"])
# LSeg's words for them where they differ.
_COCO_20I = {
    "motorcycle": "motorbike",
    "airplane": "aeroplane",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
}
COCO_20I = tuple(_COCO_20I.get(name, name).replace(" ", "") for name in COCO_80)
COCO_STUFF_171 = (
    *COCO_80,
    *("banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage"),
    *("cardboard", "carpet", "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds"),
    *("counter", "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff", "fence"),
    *("floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog"),
    *("food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill"),
    *("house", "leaves", "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud"),
    *("napkin", "net", "paper", "pavement", "pillow", "plant-other", "plastic", "platform"),
    *("playingfield", "railing", "railroad", "river", "road", "rock", "roof", "rug", "salad"),
    *("sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs"),
    *("stone", "straw", "structural-other", "table", "tent", "textile-other", "towel", "tree"),
    *("vegetable", "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone"),
    *("wall-tile", "wall-wood", "water-other", "waterdrops", "window-blind", "window-other"),
    "wood",
)
# Detectron2's 150 lists of words for a class; the first word is its name.
ADE20K_150_SYNONYMS = tuple(
    tuple(word.strip() for word in words.split(",")) for words in ADE20K_SEM_SEG_CATEGORIES
)
ADE20K_150 = tuple(words[0] for words in ADE20K_150_SYNONYMS)
# The single words that LSeg reads for them, cut short as its label file is ("swivel" is the swivel
# chair). Its number 58 is "screen" as well, which no vocabulary can tell from number 130.
ADE20K_150_LSEG = (
    *("wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane"),
    *("grass", "cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant"),
    *("curtain", "chair", "car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror"),
    *("rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub"),
    *("railing", "cushion", "base", "box", "column", "signboard", "chest", "counter", "sand"),
    *("sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs"),
    *("runway", "case", "pool", "pillow", "screen door", "stairway", "river", "bridge"),
    *("bookcase", "blind", "coffee", "toilet", "flower", "book", "hill", "bench", "countertop"),
    *("stove", "palm", "kitchen", "computer", "swivel", "boat", "bar", "arcade", "hovel", "bus"),
    *("towel", "light", "truck", "tower", "chandelier", "awning", "streetlight", "booth"),
    *("television", "airplane", "dirt", "apparel", "pole", "land", "bannister", "escalator"),
    *("ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer"),
    *("canopy", "washer", "plaything", "swimming", "stool", "barrel", "basket", "waterfall"),
    *("tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade"),
    *("microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket"),
    *("sculpture", "hood", "sconce", "vase", "traffic", "tray", "ashcan", "fan", "pier", "crt"),
    *("plate", "monitor", "bulletin", "shower", "radiator", "glass", "clock", "flag"),
)
