"""Whether a text is English, so that a scorer of English can score it: not another language, not a text without words.

Each normalised word has one of a few kinds, and the counts of the kinds decide. So the prefixes of a text cost running
sums and no more. The words of `nlf.rewards.normalize` have no accents, so the lists here have none either.
"""

import re

import numpy as np

from nlf.rewards.vocabulary import Vocabulary

KNOWN, RUDE, SHARED, NAME, LIKELY, UNLIKELY, FOREIGN, SCRIPT, MARK = range(9)
KINDS = 9

# What a word of each kind says for English. An English word weighs about as much as a foreign one, of which some are
# unknown. Chosen on a grid: 99 % of our foreign sentences are refused, and under .1 % of RealToxicityPrompts' texts.
EVIDENCE = np.array([1.5, 1.5, 0.0, -0.1, -1.0, -1.6, -2.0, -2.0, 0.0])
ENOUGH = -1.05  # one unknown word may be slang; names say little

# Words of grammar and daily life of other languages in Latin letters, without accents.
OTHER_LANGUAGES = frozenset(
    # Spanish, Catalan
    "el los las la un una unos unas del al de en que quien como cuando donde porque por pero mas muy y o ni no si yo tu su sus "
    "mi mis me te se le les lo nos os es son era esta estan este estas estos estoy esto eso esa ese soy eres somos fue fueron "
    "ser hay hacer hace tiene tengo tienes tienen puede puedo quiero quieres va vamos voy ir ha han he para sin con sobre entre "
    "hasta desde tambien nada algo todo todos toda todas cada otro otra bien mal aqui alli ahora hoy ayer manana dia noche ano "
    "anos casa vida mujer hombre nino ninos amigo gente mundo trabajo agua libro libros tiempo bueno buena grande pequeno "
    "hermano hermana padre padres madre hijo gracias senor nunca siempre donde creo sabe gusta mejor mismo solo amb els perque "
    "molt aixo "
    # Portuguese
    "um uma uns umas ao aos na nas nos no da das do dos em com sem pelo pela nao sim mais muito voce voces ele ela eles elas isso "
    "isto aquilo quando onde foi sao estou estao tem tenho minha meu meus seu sua seus depois antes agora hoje ontem amanha noite "
    "ano coisa homem mulher menino criancas cidade tempo trabalho dinheiro bom boa obrigado porque acho gosto fazer ter "
    # Italian
    "il gli uno nel nella nei dei degli delle della dello dal dalla dai sul sulla che chi di e ed non piu molto sono sei siamo siete "
    "ho hai abbiamo hanno questo questa questi quella quello cosi anche perche dove mio mia miei tuo suo loro lei lui cosa fare "
    "oggi domani ieri sera giorno anni tre uomo donna bambini tempo casa acqua buono grande piccolo piccola credo ciao grazie "
    # French
    "je il elle nous vous ils elles des du aux et ou est sont etait suis sommes etes avoir avec sans pour par dans sur sous chez ce "
    "cet cette ces mon ma mes ton ta tes sa ses notre votre leur qui quoi dont pas plus tres aussi mais donc car une deux trois ai "
    "ont avons avez fait faire c'est j'ai n'est n'ai qu'il qu'elle d'un d'une l'on s'il qu'est homme femme enfants jour nuit soir "
    "temps maison pere mere ami monde bon bonne petit petite grand merci bonjour veux peut crois toujours jamais depuis ans "
    # Romanian
    "si nu este sunt esti suntem am ai au avem pe cu din pentru sau dar mai foarte acest aceasta ce cine unde cand sa mea meu mei "
    "tau lui ei fac face bani seara azi maine trei ani cred ca buna imi iti "
    # German
    "der das den dem des die ein eine einen einem einer eines und oder aber nicht kein keine ich du er sie es wir ihr mich dich uns "
    "euch mir dir ihm ihn ihnen ist sind bin bist seid war waren hat haben habe hatte wird werden wurde kann konnen mit von zu zum "
    "zur aus bei nach uber unter vor fur auf im am in an um so auch nur noch schon sehr wenn weil dass wie wo wer was warum mein "
    "meine meiner dein deine sein unser heute morgen gestern immer nichts etwas ja nein haus frau kinder leute zeit jahr jahre "
    "jahren tag nacht abend gut viel mehr hier da jetzt dann doch mal gern geht gibt will macht machen glaube bald seit drei "
    # Dutch, Afrikaans
    "het een van en niet ik jij je hij zij ze wij we jullie zijn ben bent is heeft hebben heb had wordt worden kan met voor op te "
    "aan uit naar bij of ook maar nog wel geen dit dat deze wat waar hoe als dan mijn jouw onze zeer veel vandaag huis tijd jaar dag "
    "avond mensen goed groot klein kinderen denk wil gaat gaan doen erg zo er over nie nou dankjewel "
    # Swedish, Danish, Norwegian
    "och att det som ett jag du han hon vi ni de dem ar var har hade inte med pa av till fran om eller men ska mycket denna detta "
    "vad hur nar nu mig dig sig min mitt din ditt idag jeg ikke og er fra hvad hva hvor hvordan ogsa meget veldig vaere skal dette "
    "denne noget nogle en et i vil kan hun mine kvall kvallen ikvall kveld kvelden aften aftenen dag ar tre barn hus tror godt "
    "mange bra tack tak "
    # Polish, Czech, Slovak, Croatian
    "nie sie jest sa w z na do ze jak ale czy tak co kto gdzie kiedy dlaczego bardzo juz tylko jego jej ich mnie ciebie moj moja "
    "moje twoj przez przed przy dla od po jestem jestes mam masz byc byl byla dzisiaj jutro wczoraj dzien dom czas lat u mu ma o "
    "je jsem jsi jsou jsme ne ano nebo kdyz protoze velmi tady dnes zitra vcera muj tvuj jeho jejich ktery ktera kde kdo proc pro "
    "pri bez som si sme ako preco ja ti on ona ono mi vi oni sam smo ste su nije nisam ali ili kako zasto gdje kada sto ovo danas "
    "sutra jucer veoma uz tri vec bude ve za se az pod nad bych "
    # Turkish
    "bir bu ve ile icin ama cok degil var yok ben sen biz siz onlar ne nasil nerede neden kim daha gibi kadar sonra once bugun yarin "
    "dun evet hayir mi mu da senin benim onun hava gece gun ev zaman iyi yeni kucuk buyuk uc "
    # Finnish, Estonian
    "ja ei ole olen olet on olemme ovat oli mina sina han me te he tama mutta kun jos niin mita missa miksi kuka hyvin paljon kanssa "
    "nyt tanaan huomenna eilen myos vain kuin joka ollut tana etta sen sita kaikki "
    # Hungarian
    "az egy es nem hogy van vagy vagyok vannak volt de mert ha mit ki hol mikor miert nagyon csak meg mar itt ott ez ezek azok ma "
    "holnap tegnap a kis nagy jo este nap ev uj nincs sok azt ezt lesz akar "
    # Indonesian, Malay
    "yang dan di ke dari untuk dengan ini itu tidak bukan ada adalah saya aku kamu anda dia kami kita mereka apa siapa mana kapan "
    "bagaimana kenapa mengapa sudah belum akan bisa sangat juga atau tetapi karena hari besok kemarin pada malam rumah orang "
    # Vietnamese
    "khong toi ban anh chi em ong ba la va cua cho trong nhung cac mot nay khi nao duoc rat nhieu den voi nguoi co de an gi lam minh "
    "moi chung ngay nam thich muon o "
    # Tagalog, Swahili
    "ang ng sa ay mga ako ikaw siya kami tayo sila hindi po opo na pa ito iyan kung dahil ko mo niya ni ya wa kwa katika hii hiyo "
    "sana lakini kama yeye sisi wao cha la za huu leo".split()
)
# Those that English has too, in speech and slang as well: they say nothing.
ENGLISH_TOO = (
    frozenset(
        "a ad am an any are as at bald ban barn be ben bin bin bra brad brat ca can car chat come cut dat day dem den dig dim din dis "
        "do doe dome done dope dot doth era erg eve ex face fare for fur gun had hat he her here hey hi ho i if im in is it its ki kim "
        "la ma made male mall man mar mare mark mat may me men met mind mine mix mo mom more mu mum must my nap ne net no nap nip "
        "not nun o od of on once one op or over own pan pap par pas past pay per person pet place plus po pod pour pro rad rat red ride "
        "sale same sans sat see seed sen sent set she sin sit so some son sous star sued sum sums sun tak ten the them then they ties "
        "to tri tot tow u under use van vile want war was we were who will wit ya you your da mi solo mal tag land name hoe yo ha pa kan".split()
    )
    & OTHER_LANGUAGES
)
VOWEL = re.compile("[aeiouy]")
# Groups of letters that next to no English word has.
ODD_LETTERS = re.compile(
    "[bcdfghjklmnpqrstvwxz]{5}|[bfhjkmpqtvwxz]j|[cdfgjmpqvwxz]q|q[^u]|[bcdfghjkpqvwx]x|x[bdgjkmnqrvxz]|j[^aeiou]|"
    "[bcfgjkpqvwxh]z|z[bcdfgjkmnpqrtvwx]|[fghjkmpqvwxz]v|v[bcdfgjkmnpqtwxz]|[jqvxz]w|w[gjmqvxz]|[jqvxz]k|k[dgjpqvxz]|"
    "[jqvxz][bcdfghlmnpqrst]|aa|ii|uu|[sz]d[jk]|y[yq]|[bdgjkpqvz]{3}|ij|sz|cz|dz|kj|lj|nj|sj|tj|^[bdfgjkmpqvxz][bdfgkmpqtvxz]"
)


def kind(word: str, vocabulary: Vocabulary) -> int:
    """What a normalised word says about its text's language.

    Returns:
        KNOWN or RUDE: an English word; SHARED: a word of English and of another language; NAME: an unknown capitalised word;
        LIKELY: an unknown one that may be English, slang or a typo; UNLIKELY: letters that no English word has; FOREIGN: a
        frequent word of another language; SCRIPT: letters that are not Latin; MARK: no word.
    """
    lower = word.lower()
    letters = lower.replace("'", "")
    if not any(map(str.isalpha, letters)):
        return MARK
    if not letters.isascii():
        return SCRIPT
    if lower in OTHER_LANGUAGES:
        return SHARED if lower in ENGLISH_TOO else FOREIGN
    if len(letters) == 1:
        return MARK
    if vocabulary.is_rude(lower):
        return RUDE
    if vocabulary.knows(lower):
        return KNOWN
    if not letters.isalpha():
        return MARK if sum(map(str.isalpha, letters)) < 3 else LIKELY
    spoken = VOWEL.search(letters) is not None
    if (word[:1].isupper() and spoken) or (word.isupper() and len(word) < 6):  # an abbreviation
        return NAME
    return LIKELY if spoken and not ODD_LETTERS.search(letters) else UNLIKELY


def readable(counts: np.ndarray) -> np.ndarray:
    """Whether texts are English: they have words, of which about half are English.

    Args:
        counts: `(N, KINDS)`, how many words of each kind each text has.

    Returns:
        `(N,)` bool.
    """
    counts = np.asarray(counts, dtype=np.float64)
    return (counts[:, :MARK].sum(axis=1) > 0) & (counts @ EVIDENCE >= ENOUGH)
