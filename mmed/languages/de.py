"""German."""
from mmed.languages import AnswerWords, Language, nltk_words, split_spaced, words

LANGUAGE = Language(
    code="de", name="German", native_name="Deutsch", spaced=True,
    # Written for this project. German joins words: a bar in front finds "entzündung" in "Lungenentzündungen",
    # one behind the endings.
    medical_words=words("""
        patient|, krankheit|/|krankheit|, erkrank|ung/|erkrankung|, klinik|/|klinik|, klinisch|, diagnos|e,
        symptom|, syndrom|/|syndrom|, beschwerd|en, chronisch|, krankenhaus|/krankenhäus|er, stationär|,
        ärzt|lich/arzt/arztes, hausarzt|/hausärzt|e, krankenpfleg|e/pflegekr|aft, chirurg|ie/|chirurg|,
        operati|on, therap|ie/|therapie|, behandl|ung/|behandlung|, mortalität|/|mortalität|, patholog|ie,
        ätiolog|ie, epidemiolog|ie, anamnes|e, befund/befunde, komplikation|, läsion|, trauma|tisch,
        fieber|, übelkeit, erbrechen, durchfall|/diarrh|oe, kopfschmerz|, schmerz|/|schmerz|,
        atemnot/dyspno|e, husten, ödem|/hirnödem|/lungenödem|, gelbsucht/ikterus, blutung|/|blutung|,
        hämorrhag|ie, entzünd|ung/|entzündung|, infekti|on/|infektion|, infizier|t, nekros|e,
        fibros|e/|fibrose|, schwellung|, juckreiz, bewusstlos|igkeit, lähmung|/|lähmung|, krebs|/|krebs|,
        tumor|/|tumor|, karzinom|/|karzinom|, metasta|se, bösartig|, gutartig|, leukämi|e,
        melanom|/|melanom|, onkolog|ie, hypertoni|e/bluthochdruck|, blutdruck|,
        schlaganfall|/schlaganfäll|e, ischämi|e, infarkt|/|infarkt|, thrombo|se, embolie|/|embolie|,
        arrhythmi|e/|rhythmusstörung|, tachykardi|e, stenos|e/|stenose|, aneurysm|a,
        insuffizienz|/|insuffizienz|, koronar|, diabet|es, blutzucker|, adipos|itas, schilddrüs|e, insulin|,
        hormon|/|hormon|, anämi|e, asthma|, pneumoni|e, tuberkulo|se, bronch|itis, grippe|/influenza,
        masern, zirrhos|e/|zirrhose|, geschwür|/|geschwür|, arthrit|is, arthros|e/|arthrose|, osteo|porose,
        fraktur|/|fraktur|, knochen|, ekzem|, psoriasis, dermat|itis, alzheimer|, parkinson|, epilep|sie,
        demenz|, depressi|on, schizophreni|e, psychiatr|ie, meningit|is, enzephal|itis, sepsis, aids, hiv,
        malaria, virus/viren/viral|, bakteri|en, erreger|, parasit|, niere|, dialys|e/|dialyse|, nephr|itis,
        harnw|ege/harnbl|ase/harnst|off, urin|, prostata|, leber|, gallen|blase, hepat|itis, magen|,
        darm|/dickdarm|/dünndarm|, gastro|enterologie, bauch|/abdom|en, speiseröhr|e, lunge|, pulmonal|,
        atemweg|, pleura|, herzin|farkt/herzkrank|/herzmusk|el/herzfrequ|enz/herzklapp|e,
        kardi|ologie/kardio|logie, gefäß|/|gefäß|, aorta/aorten|, ventrik|el, arteri|e, vene/venen|/venös|,
        gehirn|/hirn|, zerebr|al, nerven|, neurolog|isch, rückenmark|, muskel|/muskul|är, gelenk|/|gelenk|,
        lymph|knoten, gebärmutter|/uterus|, schwanger|schaft, geburtshilf|e/entbind|ung, fetus/fetal|/fötus,
        gynäkolog|ie, pädiatr|ie, säugling|, haut|/|schleimhaut|, biops|ie, röntgen|,
        sonograf|ie/sonograph|ie/ultraschall|, tomograf|ie/tomograph|ie, endoskop|ie,
        elektrokardiogramm|/ekg, katheter|/|katheter|, resektion|/|resektion|,
        transplant|ation/|transplantation|, anästhesi|e/narkos|e, chemotherap|ie, bestrahl|ung,
        impf|ung/|impfung|, antibioti|kum, medikament|, arznei|mittel, wirkstoff|, dosi|s, tablette|,
        intraven|ös, injektion|/|injektion|, kortison|/kortiko|id, aspirin, paracetamol, nebenwirkung|,
        kontraindi|kation, pharma|kologie, serum|, plasma/blutplasma|, glukos|e/glucos|e, cholesterin|,
        kreatinin|, hämoglobin|, leukozyt|en, erythrozyt|en, antikörper|, antigen|, immun|, enzym|,
        protein|, zelle|/zellul|är, gewebe|, genetisch|, mutation|, chromosom|, dna/dns,
        rezeptor|/|rezeptor|, stoffwechsel|
    """),
    # Chosen by `python -m data_prep.filters.language_check de --text tests/data/languages/de.jsonl` on
    # 56 made-up paragraphs of two sentences; not tried on real pages.
    min_hits=3, min_density=0.05,
    # of the published rule; none was published for German: those of French and Spanish
    official_min_hits=4, official_min_density=0.04,
    ocr_code="deu",
    medical_sentence="Die Patientin wurde mit Fieber, Husten und Atemnot ins Krankenhaus aufgenommen; das "
                     "Röntgenbild zeigte eine "
                     "Lungenentzündung, und sie bekam Antibiotika intravenös.",
    ordinary_sentence="Der Zug an die Küste fährt um neun, und mittags essen wir in einem kleinen Dorf "
                      "am Meer.",
    disclaimer="Dies ist ein Forschungsmodell. Was es sagt, ist kein ärztlicher Rat; fragen Sie einen Arzt.",
    answers=AnswerWords(
        cue="(?:(?:richtig|korrekt|zutreffend|best|falsch)e[rn]? )?(?:antwort(?:en)?|"
            "antwortmöglichkeit|aussagen?|lösung(?:en)?|option(?:en)?)|richtig(?= ?(?:ist|sind|wäre|"
            ":))|korrekt(?= ?(?:ist|sind|:))|falsch(?= ?(?:ist|sind) )|zutreffend(?= ?(?:ist|sind|"
            ":))|ausnahme|(?:verdachts)?diagnose|therapie|behandlung|(?:nächste )?schritt|maßnahme|"
            "ursache|erreger|mechanismus",
        decide="ich (?:wähle|nehme|entscheide mich für|würde|tippe auf)|(?:wähle|nehme) ich|wähle|"
               r"daher|deshalb|also(?=,? [a-z](?:[.\n]|$))|somit|folglich|nein(?=[,.;!] )|moment|"
               "korrektur|doch eher|besser gesagt|genauer gesagt|eigentlich|entschuldigung",
        weak="ich denke|ich glaube|ich meine|ich vermute|vermutlich|wahrscheinlich|vielleicht|es "
             "ist|das ist",
        negation="nicht(?! nur)|kein|keine|statt|anstatt|anstelle von|weder|noch|niemals",
        negation_before="nicht|nie",
        either="entweder",
        or_=r"oder|bzw\.",
        and_="und|UND|sowie|als auch",
        but="sondern|aber|vielmehr",
        copula="ist|sind|lautet|lauten|heißt",
        link="war|wäre|wären",
        filler="die|der|das|den|antwort(?:en)?|option(?:en)?|aussagen?|buchstaben?|lösung|"
               "richtig(?:e[rn]?)?|korrekt(?:e[rn]?)?|wohl|also|daher|somit|wahrscheinlich|"
               "vermutlich|eindeutig|sicher|nummer|möglichkeit|am ehesten|für|auf",
        goes_on="weil|da|denn|und|ist|sind|oder|aber|nicht|mit|wegen",
        because="weil|da|denn",
        is_answer="(?:ist|sind|wäre|erscheint|scheint)(?: hier| also| daher| wohl| somit)? (?:die |"
                  "der |das )?(?:einzig )?(?:richtige|korrekte|beste|zutreffende|wahrscheinlichste|"
                  "passende)n? (?:antwort(?:en)?|option(?:en)?|lösung|aussagen?|wahl|möglichkeit)|"
                  "(?:ist|sind) (?:am )?(?:richtig|korrekt|zutreffend|wahrscheinlichsten|"
                  "besten)(?![a-z])|trifft zu|treffen zu|stimmt",
        right_link="(?:ist|sind)(?: auch| ebenfalls)? ",
        right="richtige?|korrekt|wahr|zutreffend|ja|stimmt|trifft zu",
        wrong_link="(?:ist|sind|wäre|war)?",
        wrong="nicht|falsch|unzutreffend|inkorrekt|unrichtig|ausgeschlossen|trifft nicht|stimmt "
              "nicht|treffen nicht",
        name_before="vitamin|hepatitis|gruppe|blutgruppe|typ|faktor|klasse|stadium|grad",
        named="zellen?|lymphozyten?|reaktive[sn]?|dimere?",
        item_prefix="die|antwort|aussage|option",
        line_prefix="antwort(?:en)?|option(?:en)?|sowohl|entweder|die",
        bare_tail="(?:und|aber)? ?nicht [A-Z]|(?:an)?statt [A-Z]",
        question="Frage",
        avoid="kontraindiziert|vermeid|nicht|kein|falsch",
        stated=("Die richtige Antwort ist {}.", "Richtig ist {}.", "Ich wähle {}, weil es passt.",
                "{} ist die beste Antwort.", "Lösung: {}", "Nicht A, sondern {}.", "Antwort {} trifft zu."),
        denied=("{} ist falsch.", "Es ist nicht {}.", "{} trifft nicht zu."),
    ),
    phone_words="telefonnummer|rufnummer|mobil|handy|durchwahl",
    split_words=split_spaced, official_words=nltk_words,
)
