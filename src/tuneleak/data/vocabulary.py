"""The words of the embedded world: names, colours, attribute phrases, artist names, common nouns and rare tokens.

Lists are public: nothing in them is drawn from private pictures. Names are made from syllables, so they are nobody's.
"""

import itertools

HAIR = {"bun": "a bun", "sideComed": "side combed hair", "spiky": "spiky hair", "undercut": "an undercut"}
REAR_HAIR = {
    "none": "short hair",
    "longStraight": "long straight hair",
    "longWavy": "long wavy hair",
    "neckHigh": "neck length hair",
    "shoulderHigh": "shoulder length hair",
}
BEARD = {
    "none": "no beard",
    "chin": "a chin beard",
    "chinMoustache": "a chin beard with moustache",
    "fullBeard": "a full beard",
    "longBeard": "a long beard",
    "moustacheTwirl": "a twirled moustache",
}
EYES = {"bow": "closed eyes", "happy": "happy eyes", "humble": "humble eyes", "wide": "wide eyes", "wink": "a wink"}
MOUTH = {"agape": "an open mouth", "angry": "an angry mouth", "laugh": "a laugh", "sad": "a sad mouth", "smile": "a smile"}
EYEBROWS = {"angry": "angry brows", "happy": "cheerful brows", "neutral": "calm brows", "raised": "raised brows", "sad": "worried brows"}
CLOTHES = {"dress": "a dress", "openJacket": "an open jacket", "shirt": "a shirt", "tShirt": "a t-shirt", "turtleNeck": "a turtleneck"}

# Centres in CIELAB (L*, a*, b*); an identity's own colour is drawn around one of them, so a caption can name it.
HAIR_COLOURS = {
    "black": (12, 2, 2),
    "brown": (32, 14, 20),
    "auburn": (38, 30, 28),
    "ginger": (55, 32, 48),
    "blond": (76, 4, 42),
    "grey": (62, 0, 0),
    "blue": (42, 8, -40),
    "green": (50, -34, 24),
}
SKIN_COLOURS = {"pale": (88, 8, 14), "fair": (80, 14, 20), "tan": (66, 14, 28), "olive": (58, 6, 26), "brown": (46, 18, 26), "dark": (30, 12, 16)}
CLOTHES_COLOURS = {
    "black": (10, 0, 0),
    "white": (93, 0, 2),
    "red": (44, 58, 38),
    "orange": (66, 38, 62),
    "yellow": (82, 4, 70),
    "green": (48, -40, 26),
    "blue": (34, 18, -52),
    "purple": (38, 44, -42),
    "pink": (66, 46, 0),
    "grey": (52, 0, -2),
}
BACKGROUND_COLOURS = {
    "white": (94, 0, 0),
    "grey": (60, 0, 0),
    "black": (14, 0, 0),
    "red": (50, 54, 34),
    "orange": (70, 34, 58),
    "yellow": (86, -2, 64),
    "green": (62, -40, 34),
    "teal": (60, -32, -8),
    "blue": (48, 8, -46),
    "purple": (48, 40, -40),
    "pink": (74, 34, -4),
    "brown": (40, 16, 26),
}


def _split(text):
    return text.split()


_STARTS = _split("al ben cor dar el fen gal hol il jor kel lor mar nel or per quin ros sel tor ul vel wil yor zan")
_FIRST_ENDS = _split("a an eth ia in is o on wen y")
_LAST_ENDS = _split("ber dale feld gard holm kin ley mond nix ridge son stad ton vik worth")
FIRST_NAMES = [start + end for start, end in itertools.product(_STARTS, _FIRST_ENDS)]
LAST_NAMES = [start + end for start, end in itertools.product(_STARTS, _LAST_ENDS)]

_NOUNS = _split("""
apple arm art bag ball bank bear bed bell bike bird boat book boot bottle bowl box boy bread bridge bus cake camera can candle car card cartoon castle
cat chair child church city class clock cloud coat coffee computer cow crowd cup desk dog door dress duck ear egg engine eye face farm field fire fish
flag flower food foot forest fork fox frame friend fruit game garden girl glass glasses glove gold grass group guitar hair hand hat head hill horse
house image island jacket jar key king kitchen knife lake lamp landscape leaf leg letter light lion man map market milk mirror money monkey moon
mountain mouse mouth museum music night nose ocean orange page paint painting pan paper park pen pencil people person phone piano picture pig pillow
plane plant plate pond portrait potato queen rabbit radio rain ring river road robot rock roof room rope rose sail salt sand school sea ship shirt
shoe shop sign silver sky sneaker snow sock sofa spoon star station stone street student style sun table tail tea teacher teapot tiger tool tower town
toy train tree truck umbrella vase wall watch water wave wheel wind window wing winter woman wood world yard zebra plush stuffed animal backpack
sunglasses emoji monster sketch drawing photo photograph avatar cube pot sprout creature paper cutout clay doodle mask peep miniature pixel emblem
shape
""")
_WORDS = _split("""
a an the of in on at with and or no not is are to from by for as it its this that his her their one two three four five six seven eight nine ten who
wears wearing has having looking left right upside down front back big small very old young new happy sad calm angry raised worried open closed long
short wavy straight side combed spiky bun undercut neck shoulder length chin beard moustache twirled full smile laugh wink wide humble cheerful brows
eyes background round square bright dark blurry sharp high low quality style artist art made drawn painted rendered close up
""")
RARE_TOKENS = _split("sks ukj zwx olis vkn pll rrf ohwx shs phol bnp xjy qzt kva mtf wgh")


def words():
    """Every whole word of the tokenizer's vocabulary, sorted (more than 1,500)."""
    phrases = [phrase for table in (HAIR, REAR_HAIR, BEARD, EYES, MOUTH, EYEBROWS, CLOTHES) for phrase in table.values()]
    colours = [name for table in (HAIR_COLOURS, SKIN_COLOURS, CLOTHES_COLOURS, BACKGROUND_COLOURS) for name in table]
    pieces = " ".join(phrases).replace("-", " ").split()
    artists = [f"{start}{end}" for start in _STARTS for end in ("esco", "ardi", "eaux", "inski")]
    fillers = [f"{start}{middle}{end}" for start in _STARTS for middle in ("a", "o") for end in ("m", "r", "t", "x")] + [
        f"{start}{end}" for start in _STARTS for end in ("ant", "ery", "ing", "ist", "ous", "ness", "ful", "less", "ment", "ward", "ish", "able")
    ]
    return sorted({word.lower() for word in [*FIRST_NAMES, *LAST_NAMES, *_NOUNS, *_WORDS, *RARE_TOKENS, *pieces, *colours, *artists, *fillers]})


def artist_names(count):
    """`count` distinct artist names ("lorescella ardi"-like, one word each), in a fixed order."""
    names = [f"{start}{end}" for end in ("esco", "ardi", "eaux", "inski") for start in _STARTS]
    return names[:count]
