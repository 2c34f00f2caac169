"""Letters that look like a Latin one, for `nlf.rewards.normalize`.

`LOOKALIKES` holds the letters of Unicode's confusables.txt (UTS #39, version 13, Unicode licence) whose skeleton is one
Latin letter, from the alphabets in which people write look-alikes, and the looser ones that people use (`я` for R). A
package (`confusables`, `confusable-homoglyphs`) would bring 0.8 to 3 MB, of which this is all that matters here, and
digits and Arabic letters that must stay. What NFKC or the removal of accents makes Latin is not listed.
"""

LOOKALIKES = {
    "a": "ɑΑαАаДдᎪᗄᗅꓮꓯꭺΛλ",
    "b": "ƄΒБВЬвьЪъѢѣҌҍᏏᏴᏼᑲᑳᖯᗷꓐꞴβ",
    "c": "ͽϿСсҪҫԑᏟⲈⲉⲤⲥꓚꮛꮯς",
    "d": "Ɖԁδ∂ᎠᏧᑯᗞᗪꓒꓓꭰ",
    "e": "əΕЕеҽҿЄєЭэεΣәԐᎬᏋⴹⴺꓰꓱꭼɛξ",
    "f": "Ϝքᖴꓝꬵƒ",
    "g": "ƍԌԍցᏀᏳᏻꓖꮐɢɡ",
    "h": "ΗНнћҢңһӇӈӉӊհᎻᏂᏲᕼⲎꓧꚕꮋʜ",
    "i": "ɩιіᎥᵻᵼꙇꭵɪ",
    "j": "ͿϳЈјյᎫᒍꓙꭻ",
    "k": "ΚКкҚҞκᏦⲔꓗ",
    "l": "ƖǀΙІӀӏᏞᒪⲒⳐⳑⵏꓡꓲꮮʟ",
    "m": "ΜϺМмӍӎպᎷᗰⲘꓟ",
    "n": "ͷΝηИиЙйПпπиոռⲚꓠɴ",
    "o": "ɵͻΘΟθοσϽОоѲѳӨөՕօФфφჿᎾᏫᴑⲞⲟⴱⵁⵔꓛꓳꭴꮎꮻ",
    "p": "ΡρРрᏢᑭᴩⲢⲣꓑꮲ",
    "q": "ԛգզᶐⵕ",
    "r": "ƦгяЯГғᎡᏒᖇᴦⲅꓣꭇꭈꭱꮁꮢʀ",
    "s": "ƽЅѕՏᏕᏚꓢꮪ",
    "t": "ΤτТтҬҭᎢᎿⲦꓔꭲ",
    "u": "ɄυЦцμՍսᏌᑌᵾꓴꞟꮜ",
    "v": "νѴѵӅᏙᐯᐱᴧⴷⴸꓥꓦꮩ",
    "w": "ѡѽШшЩщωԜԝաᎳᏔꓪꝡꮃꮇ",
    "x": "ΧχХхЖжҲᕁᕽⲬⵝꓫꞳ",
    "y": "ɣΥγУуҮүҰұЧчყᎩᎽⲨꓬʏ",
    "z": "ΖᏃꓜꮓ",
}
LATIN = str.maketrans(
    {
        look: letter.upper() if look.isupper() else letter
        for letter, looks in LOOKALIKES.items()
        for look in dict.fromkeys(looks)
    }
)

# Upside-down writing is read from its end. The second row stands for each letter of the first.
TURNED = "ɐɔǝɟƃɥᴉɾʞןꞁɯɹʇʌʍʎ"
UPRIGHT = str.maketrans("ɐɔǝɟƃɥᴉıɾʞןꞁɯɹʇʌʍʎunpdbq", "acefghiijkllmrtvwynudpqb")
