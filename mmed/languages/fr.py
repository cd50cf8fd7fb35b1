"""French."""
from mmed.languages import AnswerWords, Language, nltk_words, split_spaced, words

LANGUAGE = Language(
    code="fr", name="French", native_name="Français", spaced=True,
    # Written for this project; the bar stands before the endings of number, gender and derivation.
    medical_words=words("""
        patient|, maladie|, cliniqu|e, diagnosti|c, pronosti|c, symptôme|, symptomat|ique, syndrome|,
        chroniqu|e, héréditaire|, hôpita|l, hospitali|sation, médecin|, médica|l, chirurg|ie, infirmi|ère,
        thérapeuti|que, traitement|, posologi|e, mortalité, pathologi|e, étiologi|e, épidémiologi|e,
        lésion|, traumati|sme, fièvre|, nausée|, vomissement|, diarrhée|, céphalée|, asthéni|e, dyspnée,
        toux, œdème|, ictère, hémorragi|e, saignement|, inflamma|tion, infecti|on, nécros|e, fibrose|,
        douleur|, cancer|, tumeur|, tumora|l, carcinome|, métasta|se, maligne, leucémi|e, néoplas|ie,
        oncologi|e, hypertensi|on, hypotension, ischémi|e, infarctus, thrombos|e, embolie|, tachycardie,
        sténose|, insuffisance, coronari|en, pression artérielle, tension artérielle, diabèt|e, diabéti|que,
        glycémi|e, hypoglycémi|e, obésité, thyroïd|e, insulin|e, hormon|e, anémi|e, asthm|e, pneumon|ie,
        tubercul|ose, bronch|ite, hépatit|e, ulcère|, pancréa|s, ostéo|porose, psoriasis, dermat|ite,
        alzheimer, parkinson, épilep|sie, convulsion|, schizophréni|e, psychiatr|ie, méningit|e,
        encéphal|ite, sida, vih, bactéri|e, parasit|e, réna|l, rein/reins, néphr|ite, urinair|e, urine|s,
        vessie, prostat|e, foie, hépati|que, gastri|que, intestin|al, abdom|en, poumon|s, pulmonair|e,
        respiratoir|e, pleural|/pleuraux, cardiaqu|e, cardio|logie, vasculair|e, aort|e, ventricul|e,
        artère|, artériel|, veineu|x, cérébra|l, crânien|, rachi|s, moelle, neurologi|e, muscl|e,
        musculair|e, ganglion|, lymph|e, utér|us, ovair|e, grossesse|, enceinte, fœta|l, obstétri|que,
        pédiatri|e, cutané|e, biopsi|e, radiologi|e, radiographi|e, échographi|e, scanner, irm, endoscopi|e,
        électrocardiogramme, cathéter|, résection, greffe|, anesthési|e, chimiothérapi|e, radiothérapi|e,
        vaccin|, antibioti|que, antivir|al, médicament|, dose/doses, comprimé|s, intraveineu|x, injection|,
        corticoïd|e, corticothérapie, paracétamol, antalgi|que, effets indésirables, effets secondaires,
        contre-indi|cation, pharmac|ie, surdosage, sérum, plasma, glucose, cholestérol, créatinin|e,
        hémoglobine, plaquett|e, leucocyt|e, anticorps, antigèn|e, immun|ité, enzym|e, protéin|e, cellul|e,
        tissu|s, génom|e, génétiqu|e, chromosom|e, adn, récepteur|, articulair|e, hanche, fémora|l, kyste|,
        hernie, dentair|e, oculair|e, postopératoir|e, allerg|ie, vaccination, biologiqu|e, césarienne,
        prise en charge, bilatéra|l
    """),
    # Chosen on one half of the labelled texts by benchmarks/data_prep/bench_filter.py --part quality; figures
    # in docs/benchmarks.md.
    min_hits=5, min_density=0.0625,
    official_min_hits=4, official_min_density=0.04,  # MMedLM: the published thresholds for French
    ocr_code="fra",
    medical_sentence="La patiente a été hospitalisée pour une fièvre avec toux et dyspnée ; la radiographie "
                     "montrait une pneumonie, "
                     "traitée par antibiotiques.",
    ordinary_sentence="Le train pour la côte part à neuf heures, et nous déjeunerons dans un petit village "
                      "au bord de la mer.",
    disclaimer="Ceci est un modèle de recherche. Ses réponses ne sont pas un avis médical ; consultez un "
               "médecin.",
    answers=AnswerWords(
        cue="réponse[_ ](?:idx|index|key|letter|correcta?)|r[ée]ponses?(?: (?:correctes?|exactes?|"
            r"fausses?|inexactes?))?|rép\.|diagnostic|traitements?|prise en charge|conduite à tenir|"
            "étape|cause|germe|agent|examen|mécanisme|bonnes? (?:options?|propositions?|lettres?)|"
            "(?:options?|propositions?) (?:correctes?|exactes?|fausses?|inexactes?|vraies?)|sont "
            "(?:correctes|exactes|vraies)(?= ?:)",
        decide="choisi[srt]?|choisir|opte pour|retiens|en fait|pardon|je corrige|rectification|"
               "plutôt|donc|ainsi|non(?=[,.;!] |[.][.])",
        weak="c'est|il s'agit de|je dirais|je pense à|je crois que|probablement|sans doute",
        negation="pas|ni|plutôt que|au lieu de|non(?! ?[,.;])",
        negation_before="pas",
        either="soit",
        or_="ou|soit|ou bien",
        and_="et|ET|ainsi que",
        but="mais(?: plutôt| bien)?",
        copula="est|sont",
        link="serait",
        filler="la|le|les|donc|lettres?|propositions?|réponses?|option|correctes?|exactes?|bonnes?|"
               "finale?|c'est|ce|est-ce",
        goes_on="car|parce|puisque|et|est|sont|ou|mais|pas|non",
        because="car|parce|puisque",
        is_answer="(?:est|sont|serait)(?: donc| bien)? (?:la|les|l'|mon|ma) ?(?:bonnes?|meilleures?|"
                  "seules?)? ?(?:réponse|option|proposition|choix)| me (?:semble|paraît) (?:être "
                  ")?(?:la|le) ",
        right_link="(?:est|sont)(?: donc| bien| également)? ",
        right="exacte?s?|vraie?s?|correctes?|justes?|bonnes?",
        wrong_link="(?:est|sont)?",
        wrong="n'est|ne|fausses?|faux|inexacte?s?",
        name_before="vitamines?|hépatite|groupe|types?|facteur|class|grade",
        named="réactive",
        item_prefix="la|le|l'|proposition",
        line_prefix="soit|la|le",
        bare_tail="(?:et)? ?(?:non|pas) [A-ZА-Я]",
        avoid="contre-indiqu|évit",
        stated=("La bonne réponse est {}.", "Je choisis {}.", "{} est la bonne réponse."),
        denied=("{} est fausse.", "Ce n'est pas {}."),
    ),
    split_words=split_spaced, official_words=nltk_words,
)
