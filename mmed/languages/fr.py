"""French."""
from mmed.languages import AnswerWords, Language, words

LANGUAGE = Language(
    code="fr", name="French", native_name="Français", spaced=True, ocr_code="fra",
    medical_words=words("""
    patient|, maladie|, cliniqu|e, diagnosti|c, pronosti|c, symptôme|, symptomat|ique, syndrome|, chroniqu|e,
    héréditaire|, hôpita|l, hospitali|sation, médecin|, médica|l, chirurg|ie, infirmi|ère, thérapeuti|que,
    traitement|, posologi|e, mortalité, pathologi|e, étiologi|e, épidémiologi|e, lésion|, traumati|sme,
    fièvre|, nausée|, vomissement|, diarrhée|, céphalée|, asthéni|e, dyspnée, toux, œdème|, ictère,
    hémorragi|e, saignement|, inflamma|tion, infecti|on, nécros|e, fibrose|, douleur|, cancer|, tumeur|,
    tumora|l, carcinome|, métasta|se, maligne, leucémi|e, néoplas|ie, oncologi|e, hypertensi|on, hypotension,
    ischémi|e, infarctus, thrombos|e, embolie|, tachycardie, sténose|, insuffisance, coronari|en,
    pression artérielle, tension artérielle, diabèt|e, diabéti|que, glycémi|e, hypoglycémi|e, obésité,
    thyroïd|e, insulin|e, hormon|e, anémi|e, asthm|e, pneumon|ie, tubercul|ose, bronch|ite, hépatit|e,
    ulcère|, pancréa|s, ostéo|porose, psoriasis, dermat|ite, alzheimer, parkinson, épilep|sie, convulsion|,
    schizophréni|e, psychiatr|ie, méningit|e, encéphal|ite, sida, vih, bactéri|e, parasit|e, réna|l,
    rein/reins, néphr|ite, urinair|e, urine|s, vessie, prostat|e, foie, hépati|que, gastri|que, intestin|al,
    abdom|en, poumon|s, pulmonair|e, respiratoir|e, pleural|/pleuraux, cardiaqu|e, cardio|logie, vasculair|e,
    aort|e, ventricul|e, artère|, artériel|, veineu|x, cérébra|l, crânien|, rachi|s, moelle, neurologi|e,
    muscl|e, musculair|e, ganglion|, lymph|e, utér|us, ovair|e, grossesse|, enceinte, fœta|l, obstétri|que,
    pédiatri|e, cutané|e, biopsi|e, radiologi|e, radiographi|e, échographi|e, scanner, irm, endoscopi|e,
    électrocardiogramme, cathéter|, résection, greffe|, anesthési|e, chimiothérapi|e, radiothérapi|e, vaccin|,
    antibioti|que, antivir|al, médicament|, dose/doses, comprimé|s, intraveineu|x, injection|, corticoïd|e,
    corticothérapie, paracétamol, antalgi|que, effets indésirables, effets secondaires, contre-indi|cation,
    pharmac|ie, surdosage, sérum, plasma, glucose, cholestérol, créatinin|e, hémoglobine, plaquett|e,
    leucocyt|e, anticorps, antigèn|e, immun|ité, enzym|e, protéin|e, cellul|e, tissu|s, génom|e, génétiqu|e,
    chromosom|e, adn, récepteur|, articulair|e, hanche, fémora|l, kyste|, hernie, dentair|e, oculair|e,
    postopératoir|e, allerg|ie, vaccination, biologiqu|e, césarienne, prise en charge, bilatéra|l
    """),
    min_hits=5, min_density=0.0625, official_min_hits=4, official_min_density=0.04,
    medical_sentence="La patiente a été hospitalisée pour une fièvre avec toux et dyspnée ; la radiographie "
                     "montrait une pneumonie, traitée par antibiotiques.",
    ordinary_sentence="Le train pour la côte part à neuf heures, et nous déjeunerons dans un petit village "
                      "au bord de la mer.",
    disclaimer="Ceci est un modèle de recherche. Ses réponses ne sont pas un avis médical ; consultez un "
               "médecin.",
    answers=AnswerWords(
        answer="réponse|, rép., conclusion, option|, choix, proposition|, lettre|, diagnostic, traitement|, "
               "prise en charge, conduite à tenir, étape, cause, germe, agent, examen, mécanisme",
        is_="est, sont, serait, c'est, s'agit de, semble, paraît, me semble, me paraît",
        choose="choisis, choisit, choisir, choisirai, choisirais, opte pour, opterais pour, penche pour, "
               "coche, sélectionne, suggère, évoque, cocher, à mon avis, répondre, retien|, reste, "
               "élimination, pense que, dirais, pense à, crois que, probablement, sans doute, finalement, "
               "donc, ainsi, en fait, plutôt, pardon, je corrige, rectification",
        correct="correct|e, exact|e, vrai, vraie, vrais, vraies, juste, justes, bon, bons, bonne, bonnes, "
                "appropri|é, adapté|, probable, correspond le mieux, explique le mieux",
        wrong="faux, fausse, fausses, incorrect|e, inexact|e, exclue, contre-indiqué, contre-indiquée, "
              "éviter",
        not_="pas, ni, non, plutôt que, au lieu de",
        because_if="car, parce que, parce qu, puisque, en raison / si, s'il, beaucoup pensent, "
                   "certains pensent",
        and_or="et, ainsi que / ou, ou bien, soit", question="Question",
        stated=("La bonne réponse est {}.", "Je choisis {}.", "{} est la bonne réponse."),
        denied=("{} est fausse.", "Ce n'est pas {}."),
    ),
)
