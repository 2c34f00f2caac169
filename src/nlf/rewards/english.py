"""Whether a text is English, so that a scorer of English can score it: not another language, not a text without words.

Each normalised word has one of a few kinds, and the counts of the kinds decide. So the prefixes of a text cost running
sums and no more. The words of `nlf.rewards.normalize` have no accents, so the lists here have none either.
"""

import re

import numpy as np

from nlf.rewards.normalize import Vocabulary

KNOWN, RUDE, LIKELY, UNLIKELY, FOREIGN, SCRIPT, MARK = range(7)
KINDS = 7

# Words of grammar and daily life of other languages in Latin letters, without accents; none is an English word.
FOREIGN_WORDS = frozenset(
    # Spanish, Portuguese, Italian, French, Romanian, Catalan
    "el los las una unos unas del que quien como cuando donde porque pero mas muy esta estan este estas esto eso esa ese "
    "soy eres somos fue ser hay hacer tiene tengo tienes puede puedo quiero quieres mi tu su sus nos le les lo se y o ya si "
    "con sin para por sobre entre hasta desde tambien nada todo todos toda cada otro otra bien aqui alli hoy ayer manana "
    "os um uma uns umas ao aos na nos nas da das dos em com sem pelo pela nao sim mais muito voce voces ele ela eles elas "
    "isso isto aquilo quando onde porque mas foi sao estou esta estamos tem tenho minha meu seu sua seus depois antes "
    "il lo gli le un uno nel nella dei degli delle della dello dal dalla sul sulla che chi di e ed non piu molto sono sei "
    "siamo siete hanno ho hai abbiamo questo questa questi quella quello cosi anche perche quando dove mio mia tuo suo loro "
    "je tu il elle nous vous ils elles le la les des du au aux et ou est sont etait suis sommes etes avoir avec sans pour "
    "par dans sur sous chez ce cet cette ces mon ma mes ton ta tes son sa ses notre votre leur qui quoi dont pas plus tres "
    "bien aussi mais donc car une deux ai ont avons avez fait c'est j'ai n'est qu'il d'un d'une l'on "
    "si nu este sunt esti suntem am ai au avem pe cu din la pentru sau dar mai foarte acest aceasta ce cine unde cand "
    "amb els les perque molt aixo pero "
    # German, Dutch, Swedish, Danish, Norwegian
    "der das den dem des ein eine einen einem einer eines und oder aber nicht kein keine ich du er sie es wir ihr mich dich "
    "uns euch mir dir ihm ihn ihnen ist sind bin bist seid waren war hat haben habe hatte wird werden wurde kann konnen mit "
    "von zu zum zur aus bei nach uber unter vor fur auf im auch nur noch schon sehr wenn weil dass wie wo wer warum mein "
    "dein sein unser heute morgen gestern immer nichts etwas ja nein "
    "het een van en niet ik jij je hij zij ze wij we jullie zijn ben bent heeft hebben heb had wordt worden kan met voor op "
    "te aan uit naar bij ook maar nog wel geen dit dat deze die wat wie waar hoe als dan mijn jouw onze zeer veel vandaag "
    "och att det som en ett jag du han hon vi ni de dem ar var har hade inte med pa av till fran om eller men kan ska mycket "
    "denna detta vad hur nar nu mig dig sig min mitt din ditt idag jeg ikke og er pa til fra hvad hvor hvordan ogsa meget "
    "vaere skal dette denne noget nogle "
    # Polish, Czech, Slovak, Croatian
    "nie sie jest sa w z na do ze jak ale czy tak co kto gdzie kiedy dlaczego bardzo juz tylko jego jej ich mnie ciebie "
    "moj moja twoj przez przed przy dla od po jestem jestes mam masz byc byl byla dzisiaj jutro wczoraj "
    "je jsem jsi jsou jsme ne ano ale nebo kdyz protoze velmi tady dnes zitra vcera muj tvuj jeho jejich ktery ktera kde "
    "kdo proc pro pri bez som si sme nie ako preco vel'mi ja ti on ona ono mi vi oni sam smo ste su nije nisam ali ili kako "
    "zasto gdje kada sto ovo danas sutra jucer veoma "
    # Turkish, Finnish, Hungarian, Estonian
    "bir bu ve ile icin ama cok degil var yok ben sen biz siz onlar ne nasil nerede neden kim daha gibi kadar sonra once "
    "bugun yarin dun evet hayir mi mu "
    "ja on ei ole olen olet olemme ovat oli mina sina han me te he se tama mutta kun jos niin mita missa miksi kuka "
    "hyvin paljon kanssa nyt tanaan huomenna eilen myos vain kuin joka "
    "az egy es nem hogy van vagy vagyok vannak volt de mert ha mit ki hol mikor miert nagyon csak meg mar itt ott ez "
    "ezek azok ma holnap tegnap "
    # Indonesian, Malay, Vietnamese, Tagalog, Swahili
    "yang dan di ke dari untuk dengan ini itu tidak bukan ada adalah saya aku kamu anda dia kami kita mereka apa siapa mana "
    "kapan bagaimana kenapa mengapa sudah belum akan bisa sangat juga atau tetapi karena hari besok kemarin "
    "khong toi ban anh chi em ong ba la va cua cho trong nhung cac mot nay khi nao duoc rat nhieu den voi nguoi "
    "ang ng sa ay mga ako ikaw siya kami tayo sila hindi po opo na pa ito iyan kung dahil "
    "ni na ya wa kwa katika hii hiyo sana lakini kama yeye sisi wao".split()
) - frozenset(
    # English words that are spelled alike
    "a am an as at be ben can de den die do dig din do e ha had he his hoe i in is it kim la ma man mar mas me mi min more "
    "my nag nary no o on once or os over pa pas per plus pro sa sage sans seen sin so son sous te ten the ton to tot tu un us "
    "van var via war was we wel were y ya dot dos for from han hat hay her kan ken nit nu out pap par pet pour sang sat "
    "see set six tag tan tad tame men ness nap nun mix mon mug nine non nor not dare dem elle em en es ex fait fur gen go "
    "hen ho jean ja jag je join ki lo los mall mine ne nos noun od of ole once ore pie pan ra rat rude sad sail sale sam "
    "saw sen ser ses sit sits sole some sop sur tan tas tear tes them these they ting ti toi tout una use u var vary "
    "wa wane were who why wit ye yo you your zee c co o w z ai au ay ba ban bin chi ed el est et il il's is it's kit la "
    "mai mit nay nu od om op po im ich sis mam on sang se sei sensed si sic sue sums te ze mu be by over under unter".split()
)
VOWEL = re.compile("[aeiouy]")
# Pairs of letters that next to no English word has.
ODD_PAIR = re.compile(
    "[bcdfghjklmnpqrstvwxz]{5}|[bfhjkmpqtvwxz]j|[cdfgjmpqvwxz]q|q[^u]|[bcdfghjkpqvwx]x|x[bdgjkmnqrvxz]|j[^aeiou]|"
    "[bcfgjkpqvwxh]z|z[bcdfgjkmnpqrtvwx]|[fghjkmpqvwxz]v|v[bcdfgjkmnpqtwxz]|[jqvxz]w|w[gjmqvxz]|[jqvxz]k|k[dgjpqvxz]|"
    "[jqvxz][bcdfghlmnpqrst]|aa|ii|uu|[sz]d[jk]|y[yq]|[bdgjkpqvz]{3}|ij|sz|cz|dz|kj|lj|nj|sj|tj|^[bdfgjkmpqvxz][bdfgkmpqtvxz]"
)


def kind(word: str, vocabulary: Vocabulary) -> int:
    """What a normalised word says about its text's language.

    Returns:
        KNOWN or RUDE: an English word; LIKELY: an unknown one that may be English, a name or a typo; UNLIKELY: other letters;
        FOREIGN: a word of another language; SCRIPT: letters that are not Latin; MARK: no letters.
    """
    lower = word.lower()
    letters = lower.replace("'", "")
    if not any(map(str.isalpha, letters)) or (len(letters) == 1 and letters.isascii() and lower not in "aiu"):
        return MARK
    if not letters.isascii():
        return SCRIPT
    if vocabulary.is_rude(lower):
        return RUDE
    if lower in FOREIGN_WORDS:
        return FOREIGN
    if vocabulary.knows(lower):
        return KNOWN
    if not letters.isalpha():
        return MARK if sum(map(str.isalpha, letters)) < 3 else LIKELY
    if word.isupper() and len(word) < 6:  # an abbreviation
        return LIKELY
    return LIKELY if VOWEL.search(letters) and not ODD_PAIR.search(letters) else UNLIKELY


def readable(counts: np.ndarray) -> np.ndarray:
    """Whether texts are English.

    Args:
        counts: `(N, KINDS)`, how many words of each kind each text has.

    Returns:
        `(N,)` bool. A text is English if English words are half of its words, where a likely one counts half.
    """
    counts = np.asarray(counts, dtype=np.float64)
    english = counts[:, KNOWN] + counts[:, RUDE]
    words = counts.sum(axis=1) - counts[:, MARK]
    return (words > 0) & (2 * english + counts[:, LIKELY] >= words)
