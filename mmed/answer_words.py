"""The words and signs by which a model's text states an answer, in six languages: the data of the answer parser.

In: nothing. Out: compiled expressions, in this order: look-alike letters, what announces an answer, what links it, what follows a
letter, verdicts, and where a text has run on. `mmed/answer_letters.py`, `mmed/answer_statements.py` and `mmed/answers.py` read with
them; `tests/data/hostile_answers.jsonl` says what they must find. Each list has the languages one a line, as far as its length allows.
All of them take folded text; those with lower-case words take it in lower case. Every repeat in them is bounded.
"""
from __future__ import annotations

import re

# Letters of other scripts that look like Latin ones; the Cyrillic ones that look like none.
LOOKALIKES = dict(zip("АВСЕНІЈКМОРЅТХ" "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧϹ" "ᎪᏴᏟᎠᎬ" "ꓮꓐꓚꓓꓰ" "асе",
                       "ABCEHIJKMOPSTX" "ABEZHIKMNOPTYXC" "ABCDE" "ABCDE" "ace"))
CYRILLIC_UNLIKE = set("БГДЖЗ")

# A letter of an alphabet with word boundaries. Chinese and Japanese have none, so \b and \w do not serve.
ALPHA = "A-Za-zÀ-ÖØ-öø-ʯͰ-ϿЀ-ԯ"

ALPHABETIC = re.compile(f"[{ALPHA}0-9]")


def _words(*groups: str) -> str:
    """Alternatives of which those that end in a letter must end there; blanks in them match one blank."""
    return "|".join(f"(?:{group})(?![{ALPHA}])" for group in groups)


# What announces an answer. The last group are verbs and revisions, which need no "is" after them.
CUE = re.compile("(?<![" + ALPHA + "])(?:" + _words(
    r"(?:answer|réponse|respuesta|ответ|答案|正解)[_ ](?:idx|index|key|letter|correcta?)",
    r"answers?|ans\.?|(?:correct|right|best|appropriate|suitable) (?:options?|choices?|ones?)|final (?:choice|"
    r"decision)|solution|(?:response|(?<!in)correct)(?= ?:)",
    r"(?:false|incorrect|wrong|untrue) (?:statement|option|choice|one|assertion)|exception",
    r"r[ée]ponses?(?: (?:correctes?|exactes?|fausses?|inexactes?))?|rép\.|bonnes? (?:options?|propositions?|lettres?)",
    r"(?:options?|propositions?) (?:correctes?|exactes?|fausses?|inexactes?|vraies?)|sont (?:correctes|exactes|"
    r"vraies)(?= ?:)",
    r"respuestas?(?: (?:correctas?|incorrectas?|falsas?))?|(?:opci[oó]n(?:es)?|alternativas?|"
    r"afirmaci[oó]n(?:es)?) (?:correctas?|incorrectas?|falsas?|verdaderas?)",
    r"son (?:correctas|verdaderas|ciertas)|l[ao]s? (?:correctas?|incorrectas?|falsas?|verdaderas?)",
    r"ответ(?:ы|ом|ами)?|отв\.|(?:правильны|верны)[ейм]+ (?:вариант(?:ы|ом)?|выбор)|верны варианты|"
    r"(?<!не)верно(?= ?:)|правильно(?= ?:)",
    r"(?:неверн|ошибочн|неправильн|верн|правильн)\w{2,3} (?:является )?(?:утверждение|вариант|высказывание)(?:м|ом)?",
) + r")|答案|正解|正答|正确选项|正確選項|正しい選択肢|正确的选项有?|的选项(?=[是为:])|的是|のは|答え|解答|回答|boxed(?=\{)")
DECIDE = re.compile("(?<![" + ALPHA + "])(?:" + _words(
    r"choose|chose|choosing|pick|select|go(?:ing)? with|opt for|my choice is|answer with",
    r"choisi[srt]?|choisir|opte pour|retiens|elijo|elegir|escojo|selecciono|me quedo con|marco|opto por",
    r"выбираю|выбираем|выбрать|выбираем",
    r"wait|actually|correction|on second thought|sorry|i meant?|or rather|let me correct that",
    r"en fait|pardon|je corrige|rectification|plutôt|en realidad|perdón|mejor dicho|corrección|corrijo|rectifico",
    r"на самом деле|точнее|вернее|исправление|исправляюсь",
    r"therefore|thus|hence|donc|ainsi|por (?:lo )?tanto|así que|por consiguiente|следовательно|значит|поэтому|итак",
) + r"|(?:no|non|нет)(?=[,.;!] |\.\.)|so(?=,? [a-z](?:[.\n]|$)))|(?<![不误誤勿没])(?:选择?|選(?!択肢))|应该是|不对|更正|其实|其實|いや|訂正|"
    r"やはり|実は|ゆえに|よって|したがって|因此|所以|故"
)
# Weak ones: heeded only before a letter that ends a clause, and only where no cue above speaks.
WEAK = re.compile("(?<![" + ALPHA + "])(?:" + _words(
    r"it's|it is|it must be|i'd say|i would say|i think|i believe|i guess|probably|likely|perhaps|maybe",
    r"c'est|il s'agit de|je dirais|je pense à|je crois que|probablement|sans doute",
    r"es la|es el|es(?= [a-z](?:[.,\n]|$))|sería la|diría|creo que|pienso que|probablemente|será la",
    r"это|думаю|полагаю|считаю|вероятно|скорее всего|наверное",
) + r")|我认为|我觉得|我想|可能是|おそらく|たぶん|恐らく")
NOT = re.compile("(?<![" + ALPHA + "])(?:" + _words(
    r"not(?! only)|isn't|aren't|wasn't|rather than|instead of|neither|nor|never|rul(?:e|ed|ing) out|eliminat\w+",
    r"pas|ni|plutôt que|au lieu de|non(?! ?[,.;])", r"no(?! ?[,.;])|no (?:es|son|era|sería)|en (?:vez|lugar) de|"
    r"descart\w+", r"не|вместо",
) + r")|不是|并非|並非|而非|不应?选|不選|排除|误选")
OR = re.compile(r" ?,? ?(?:(?:or|ou|o|u|или|либо|soit|ou bien|"
    r"o bien)(?![" + ALPHA + r"])|或者?|または|もしくは|か(?=[A-Z])) ?|, ?(?:soit|либо|either) ", re.I)
AND = re.compile(  # lower-case e and y only: the capitals are letters of options
    r" ?(?:[,;、·・&+/]|(?:and|AND|et|ET|y|e|и|И|as well as|ainsi que|así como|"
    r"а также)(?![" + ALPHA + r"])|と|和|与|與|及び?|以及|および|並びに)"
    r"(?: (?:and|AND|et|ET|y|e|и|И)(?![" + ALPHA + r"]))? ?| |\n{1,2}(?=(?:[-*•]|\d{1,2}[.)]) )")
BUT = re.compile(r"[ ,;]{0,2}(?:(?:but(?: rather)?|mais(?: plutôt| bien)?|sino(?: que)?|а|но|"
    r"rather)(?![" + ALPHA + "])|而应?是?|应|(?:では|じゃ|で)なくて?、?)", re.I)

# Between a cue and its letter: words that carry nothing, and (group 1) those that link the two.
FILLER = re.compile(
    r"(\n\d{1,2}[.)] |\n|[:=→➜>\[\](){}\"'«»“”「」『』【】《》*_`$#|~]|"
    r"-(?![" + ALPHA + r"])|[–—]|\\(?:text|textbf|mathbf|mathrm|bf|rm|boxed)(?![a-z])|"
    r"(?:is|are|was|were|be|est|sont|serait|es|son|era|sería|это|является|являются|"
    r"будет)(?![" + ALPHA + r"])|是|为|為|应为|应该?是?|就|有|选(?!项)择?|選(?!項|択肢)|は|が)|"
    r"选项|選項|選択肢|[ ,、¡¿…]|\.{2,3}|(?:the|that|this|to|of|for|question|options?|choices?|letters?|number|answers?|"
    r"correct|right|best|final|most|likely|"
    r"probably|definitely|clearly|therefore|thus|hence|indeed|appropriate|it's|its|it|should|would|will|must|has|"
    r"have|both|here|"
    r"la|le|les|donc|lettres?|propositions?|réponses?|option|correctes?|exactes?|bonnes?|finale?|c'est|ce|est-ce|"
    r"las|el|los|letra|opci[oó]n(?:es)?|correctas?|alternativas?|respuestas?|final|seguramente|probablemente|"
    r"вариант(?:ы|ом|а)?|ответ(?:ом|а|ы)?|под|букв(?:ой|а|ами)|пункт|правильный|верный|номер|утверждение|"
    r"скорее всего)(?![" + ALPHA + r"])|"
    r"l'|项|正确|最佳|应|記号|番号|として|最も|まず", re.I)
COPULA = re.compile(r"(?<![" + ALPHA + r"])(?:is|are|be|est|sont|es|son|это|"
    r"является)(?![" + ALPHA + r"])|[:：—]|是|为|は|と(?=[A-Z])")

# After a letter: what makes it a word of a sentence, or the letter of a name, and not an answer.
SPECIES = re.compile(r"\. ?(?:coli|difficile|perfringens|botulinum|tetani|albicans|aureus|epidermidis|pylori|cereus|"
    r"anthracis|fragilis|burgdorferi|"
                      r"pertussis|trachomatis|pneumoniae|psittaci|diphtheriae|jejuni|neoformans|immitis|fumigatus|"
                      r"faecalis|histolytica|henselae|"
                      r"burnetii|lumbricoides|duodenale|baumannii|cloacae|granulosus|vermicularis)\b")
NAMED = re.compile(r" (?:cells?|lymphocytes?|reactive|peptides?|dimers?|virus|peptido|reactiva|réactive|клет\w{2,4}|"
    r"реактивн\w{2,3}|пептид\w{0,2})(?![" + ALPHA + "])")
GOES_ON = re.compile(  # words that may follow a letter which by itself is a word (A, В, С, a, ...)
    r" (?:because|since|as|and|is|are|for|which|due|or|but|not|with|car|parce|puisque|et|est|sont|ou|mais|pas|non|"
    r"porque|ya|pues|y|es|son|dado|"
    r"debido|o|sino|no|потому|так|поскольку|и|является|верн\w{0,4}|правил\w{0,5}|или|но|не|given)(?![" + ALPHA + "])")
CJK_AFTER = set("。、，；：）」』】》・的项項选選是为為和与與及以或と、でだがはをのもかに因由更最吧啊呢了其正错錯不误誤対对也都应則则而じ")
CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff々]")
AFTER_OK = set(".,;:!?)]}*_`\"'»”…|$\\/&+=~→<>#%-–—({[«“（")

# Beside a letter that comes first.
IS_ANSWER = re.compile(
    r"[)\]*_\"'»”」』】`]{0,4} ?(?:(?:is|are|was|would be|must be|seems|appears to be|remains|"
    r"stands out as)(?: \w{3,12}){0,1} (?:the |our |my )?(?:most |single )?"
    r"(?:(?:correct|right|best|likely|appropriate|accurate|suitable|final)(?: (?:answer|choice|option|diagnosis|"
    r"treatment|response|one|step)|(?= ?(?:[.,;\n]|$)))|answers?(?![a-z]))|"
    r"(?:est|sont|serait)(?: donc| bien)? (?:la|les|l'|mon|ma) ?(?:bonnes?|meilleures?|seules?)? ?(?:réponse|option|"
    r"proposition|choix)| me (?:semble|paraît) (?:être )?(?:la|le) |"
    r"(?:es|son|sería)(?: claramente)? (?:la|las|el|mi) (?:mejor |única )?(?:respuesta|opci|alternativa|(?:correcta|"
    r"verdadera|adecuada|acertada)s?(?![a-z]))|"
    r"(?:[-–—]|это|является|будет)? ?(?:правильн|верн)\w{1,3} (?:ответ|вариант|выбор)|"
    r"(?:选项|項|项)?[是为](?:本题|唯一)?的?(?:正确|最佳|最合适)?的?(?:答案|选项|正解)|"
    r"[がをは、](?:最も)?(?:正解|正答|答え|選択す|選び|選ぶ|解答)|が(?:最も)?(?:適切|正し|妥当))")
VERDICT = re.compile(
    r"[)\]*_\"'»”」』】`.:]{0,4} ?(?:[-–—:=,→]|は|が)? ?(?:(?:is|are|est|sont|es|son)(?: also| donc| bien| également|"
    r" también| indeed)? (?:a |an |the )?|является |тоже |是|选项|项|為|为)?"
    r"(?:(?:correct|true|right|yes|exacte?s?|vraie?s?|correctes?|justes?|bonnes?|correctas?|verdader[ao]s?|"
    r"ciert[ao]s?|верн(?:о|а|ый|ая|ое|ым|ы)|верен|"
    r"правильн(?:о|ый|ая|ое|ым|ы))(?![" + ALPHA + r"])|正确(?![吗么])|正確|对的|正しい|適切(?!で[なは])|正解|[○〇◯✓✔✅])")
IS_WRONG = re.compile(
    r"[)\]*_\"'»”」』】`]{0,4} ?(?:[-–—]|は|が|も)? ?(?:(?:(?:is|are|was|were|would be) (?:also |too |clearly )?not|(?:is|"
    r"are|was|were|would be|est|sont|es|son|являются|является)? ?(?:also |too |clearly )?"
    r"(?:isn't|aren't|n'est|ne|no (?:es|son)|не|not (?:correct|right|true)|in?correct\w{0,3}|incorrecta?s?|wrong|"
    r"false|ruled out|excluded|fausses?|faux|inexacte?s?|falsas?|"
    r"erróneas?|falso|неверн\w{1,3}|неправильн\w{1,3}|ошибочн\w{1,3}))(?![" + ALPHA + r"])|"
    r"(?:选项|项)?(?:是|为)?(?:不正确|不对|错|錯|不符|不是|可?以?排除)|(?:では|じゃ|で)な|誤|不適|間違|不正解|除外|正しくな|适)")
NAME_BEFORE = re.compile(r"(?:vitamine?s?|vitamina|витамин\w{0,3}|hepatitis|hépatite|гепатит\w{0,2}|groupe?|grupo|"
    r"групп\w{1,2}|types?|tipo|тип\w{0,2}|factor|"
                          r"facteur|фактор\w{0,2}|class|stage|grade|protein|virus|child-pugh) $")
# Where an answer has run on into a new item, or a prompt is repeated.
RUN_ON = re.compile(r"###? ?(?:Instruction|Input|Question|Response):|Below is an instruction|(?<=\n)(?:Question|"
    r"Pregunta|Вопрос|Q) ?:|(?<=\n)(?:问题|問題)[:：]|<\|im_start\|>|\[INST\]")
ECHO_END = "### Response:"
NOT_BEFORE = re.compile(r"(?:not|n't|never|pas|no|не) (?:de |be )?$")
CAPITALS = "A-Z" + "".join(filter(str.isupper, LOOKALIKES))
STANDING = re.compile(rf"(?<![{ALPHA}0-9°])(?<![{ALPHA}]['-])[{CAPITALS}](?![a-zà-öø-ÿа-я])")
# Before a letter these make a name, as in 维生素C; hiragana does not.
CJK_NAME = re.compile("[\u30a0-\u30ff\u3400-\u9fff]")
CJK_BEFORE = set("选選項项肢案是为為故即则則和与與及以由此上")
PUBLISHED = re.compile(r" (?:is|are|es|est|son|sont) (?:correct|correcta|correcte|correctas|correctes)(?![a-z])")
OPTION_BEFORE = re.compile(r"###|answer: (?:option|opción|la)s? $|options? $|opci[oó]n(?:es)? $")
