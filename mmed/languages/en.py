"""English."""
from mmed.languages import AnswerWords, Language, words

LANGUAGE = Language(
    code="en", name="English", native_name="English", spaced=True, ocr_code="eng",
    medical_words=words("""
    patient|s, clinic|al, diagnos|is, symptom|s, syndrome|, disease|s, disorder|s, chronic|, hospital|,
    physician|, surgeon|, surger|y, surgical|, outpatient|, mortality, therap|y, treatment|, pathogen|esis,
    patholog|y, etiolog|y, epidemiolog|y, asymptomatic, lesion|s, fever|, nausea, vomiting, headache|,
    dyspn|ea, cough|, edema|/oedema|, jaundice, hemorrhag|e/haemorrhag|e, bleeding, inflamma|tion, infectio|n,
    infected, fibrosis, necro|sis, swelling, tenderness, cancer|, tumor|/tumour|, carcinoma|, metasta|sis,
    malignan|t, benign, lymphoma|, leuk|emia/leucaemia, melanoma|, sarcoma|, neoplas|m, oncolog|y,
    hypertens|ion, stroke, ischem|ia/ischaem|ia, infarct|ion, thrombo|sis, tachycardia, stenosis, aneurysm|,
    blood pressure, coronary, diabet|es, thyroid|, insulin|, hormon|e, anemi|a/anaemi|a, asthma|, pneumonia,
    tubercul|osis, influenza, hepatitis, pancrea|titis, arthriti|s, osteo|porosis, fractur|e, psoriasis,
    alzheimer, parkinson, epilep|sy, seizure|s, dementia, depression, schizophreni|a, encephal|itis, sepsis,
    septic, hiv, malaria, viral, virus|, bacteri|a, parasit|e, renal, kidney|s, nephr|itis, urin|ary, bladder,
    prostat|e, liver, hepat|ic, gastro|intestinal, intestin|al, bowel, abdom|en, esophag|us/oesophag|us,
    spleen, lung|s, pulmonary, respirator|y, pleura|l, cardiac, cardio|vascular, vascular, aort|a, ventric|le,
    arter|y, venous, cerebral, cranial, spinal, neuro|logy, muscle|s, tendon|, lymph|, uter|us,
    ovary/ovaries/ovarian, cervical, pregnan|cy, fetal/foetal, pediatric|/paediatric|, skin, biops|y,
    radiograph|, ultraso|und, tomograph|y, mri, endoscop|y, electrocardio|gram, catheter|, laparo|scopy,
    resection, transplant|, chemotherap|y, radiotherap|y, vaccin|e, antibiot|ic, antiviral|, dose/doses,
    intraven|ous, subcutaneous, steroid|s, corticosteroid|, pharmac|y, serum, plasma, glucose, cholesterol,
    creatinin|e, hemoglobin/haemoglobin, platelet|, leukocyt|e, antibod|y, antigen|, immun|e, enzym|e,
    protein|s, histolog|y, tissue|s, gene/genes, genetic|, mutation|, chromosom|e, dna, receptor|, femoral,
    femur, lumbar, spine, excision, hernia|, postoperativ|e, ocular, cesarean/caesarean, remission,
    cyst/cysts, pain, nodule|s, allerg|y, hematolog|y/haematolog|y, cells, acute, blood, imaging,
    histopatholog|y, dislocation, magnetic resonance, angiogra|phy, chest, recurren|t
    """),
    min_hits=3, min_density=0.0375, official_min_hits=5, official_min_density=0.04,
    medical_sentence="The patient was admitted to hospital with fever, cough and dyspnea; a chest radiograph "
                     "showed pneumonia, and intravenous antibiotics were given.",
    ordinary_sentence="The train to the coast leaves at nine, and we shall have lunch in a small village by "
                      "the sea.",
    answers=AnswerWords(
        answer="answer|, ans, ans., option|, choice|, response, statement, letter, exception, solution, "
               "decision, key, conclusion, result, output, assistant, diagnosis, treatment|, therapy, "
               "management, step|, etiology, aetiology, cause|, organism, pathogen, mechanism, drug, "
               "medication, agent, test, finding, investigation, intervention, action, complication, study, "
               "procedure, selected, prediction",
        is_="is, are, was, were, be, it's, it is, this is, this should be, to be, has to be, seems, "
            "appears, remains, stands out as, would be, should be, must be, could be, might be, may be",
        choose="choose, chose, choosing, pick, select, go with, going with, go for, opt for, toward|, "
               "leaves, leaves us with, left with, elimination, recommend, prefer, favor, say, think, "
               "believe, guess, suspect, probably, perhaps, maybe, in conclusion, on balance, selecting, "
               "suggest|, support|, point to, points to, corresponds to, definitely, clearly, certainly, "
               "therefore, thus, hence, so, wait, actually, correction, sorry, on second thought, i mean, "
               "i meant, or rather",
        correct="correct|, right, best, true, likely, appropriate, suitable, accurate, final, yes, "
                "preferred, preferable, of choice, safer, safest, better, fits, best fit, matches",
        wrong="wrong, incorrect|, false, untrue, excluded, ruled out, contraindicated, inappropriate, "
              "unlikely, avoid|, unsafe, unsuitable, harmful, worse|, eliminated, is out, are out",
        not_="not, isn't, aren't, wasn't, cannot, can't, don't, never, rather than, instead of, neither, "
             "nor, eliminate, eliminating, ruling out",
        because_if="because, since, as, for, given, due, with, which, while, whereas, although, though, "
                   "according to, based on, considering / if, unless, many students, many people, "
                   "many would, some people, some would, some might, one might, one may, you might, you may",
        and_or="and, as well as / or", question="Question", letters="",
        stated=("The correct answer is {}.", "I would choose {}.", "{} is the best choice."),
        denied=("{} is wrong.", "It is not {}."),
    ),
)
