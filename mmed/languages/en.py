"""English."""
from mmed.languages import AnswerWords, Language, nltk_words, split_spaced, words

LANGUAGE = Language(
    code="en", name="English", native_name="English", spaced=True,
    # Written for this project: signs and people, diseases, organs, examination and treatment, pharmacy,
    # medical biology.
    medical_words=words("""
        patient|s, clinic|al, diagnos|is, symptom|s, syndrome|, disease|s, disorder|s, chronic|, hospital|,
        physician|, surgeon|, surger|y, surgical|, outpatient|, mortality, therap|y, treatment|,
        pathogen|esis, patholog|y, etiolog|y, epidemiolog|y, asymptomatic, lesion|s, fever|, nausea,
        vomiting, headache|, dyspn|ea, cough|, edema|/oedema|, jaundice, hemorrhag|e/haemorrhag|e, bleeding,
        inflamma|tion, infectio|n, infected, fibrosis, necro|sis, swelling, tenderness, cancer|,
        tumor|/tumour|, carcinoma|, metasta|sis, malignan|t, benign, lymphoma|, leuk|emia/leucaemia,
        melanoma|, sarcoma|, neoplas|m, oncolog|y, hypertens|ion, stroke, ischem|ia/ischaem|ia, infarct|ion,
        thrombo|sis, tachycardia, stenosis, aneurysm|, blood pressure, coronary, diabet|es, thyroid|,
        insulin|, hormon|e, anemi|a/anaemi|a, asthma|, pneumonia, tubercul|osis, influenza, hepatitis,
        pancrea|titis, arthriti|s, osteo|porosis, fractur|e, psoriasis, alzheimer, parkinson, epilep|sy,
        seizure|s, dementia, depression, schizophreni|a, encephal|itis, sepsis, septic, hiv, malaria, viral,
        virus|, bacteri|a, parasit|e, renal, kidney|s, nephr|itis, urin|ary, bladder, prostat|e, liver,
        hepat|ic, gastro|intestinal, intestin|al, bowel, abdom|en, esophag|us/oesophag|us, spleen, lung|s,
        pulmonary, respirator|y, pleura|l, cardiac, cardio|vascular, vascular, aort|a, ventric|le, arter|y,
        venous, cerebral, cranial, spinal, neuro|logy, muscle|s, tendon|, lymph|, uter|us,
        ovary/ovaries/ovarian, cervical, pregnan|cy, fetal/foetal, pediatric|/paediatric|, skin, biops|y,
        radiograph|, ultraso|und, tomograph|y, mri, endoscop|y, electrocardio|gram, catheter|, laparo|scopy,
        resection, transplant|, chemotherap|y, radiotherap|y, vaccin|e, antibiot|ic, antiviral|, dose/doses,
        intraven|ous, subcutaneous, steroid|s, corticosteroid|, pharmac|y, serum, plasma, glucose,
        cholesterol, creatinin|e, hemoglobin/haemoglobin, platelet|, leukocyt|e, antibod|y, antigen|,
        immun|e, enzym|e, protein|s, histolog|y, tissue|s, gene/genes, genetic|, mutation|, chromosom|e,
        dna, receptor|, femoral, femur, lumbar, spine, excision, hernia|, postoperativ|e, ocular,
        cesarean/caesarean, remission, cyst/cysts, pain, nodule|s, allerg|y, hematolog|y/haematolog|y,
        cells, acute, blood, imaging, histopatholog|y, dislocation, magnetic resonance, angiogra|phy, chest,
        recurren|t
    """),
    # Chosen on one half of the labelled texts by benchmarks/data_prep/bench_filter.py --part quality; figures
    # in docs/benchmarks.md.
    min_hits=3, min_density=0.0375,
    official_min_hits=5, official_min_density=0.04,  # MMedLM: the published thresholds for English
    ocr_code="eng",
    medical_sentence="The patient was admitted to hospital with fever, cough and dyspnea; a chest "
                     "radiograph showed pneumonia, "
                     "and intravenous antibiotics were given.",
    ordinary_sentence="The train to the coast leaves at nine, and we shall have lunch in a small village by "
                      "the sea.",
    answers=AnswerWords(
        cue=r"answer[_ ](?:idx|index|key|letter)|answers?|ans\.?|(?:correct|right|best|appropriate|"
            "suitable) (?:options?|choices?|ones?)|final (?:choice|decision)|solution|diagnosis|"
            "treatments?|therapy|management|(?:next|initial|first) steps?|a?etiology|causes?|"
            "organism|pathogen|mechanism|drug|medication|agent|test|finding|investigation|"
            "intervention|action|complication|study|procedure|(?:response|(?<!in)correct)(?= ?:)|"
            "(?:false|incorrect|wrong|untrue) (?:statement|option|choice|one|assertion)|exception",
        decide="choose|chose|choosing|pick|select|go(?:ing)? with|opt for|my choice is|answer with|"
               "wait|actually|correction|on second thought|sorry|i meant?|or rather|let me correct "
               r"that|therefore|thus|hence|no(?=[,.;!] |\.\.)|so(?=,? [a-z](?:[.\n]|$))",
        weak="it's|it is|it must be|i'd say|i would say|i think|i believe|i guess|probably|likely|"
             "perhaps|maybe",
        negation="not(?! only)|isn't|aren't|wasn't|rather than|instead of|neither|nor|never|rul(?:e|"
                 r"ed|ing) out|eliminat\w+",
        negation_before="not|n't|never",
        either="either",
        or_="or",
        and_="and|AND|as well as",
        but="but(?: rather)?|rather",
        copula="is|are|be",
        link="was|were",
        filler="the|that|this|to|of|for|question|options?|choices?|letters?|number|answers?|correct|"
               "right|best|final|most|likely|probably|definitely|clearly|therefore|thus|hence|"
               "indeed|appropriate|it's|its|it|should|would|will|must|has|have|both|here",
        goes_on="because|since|as|and|is|are|for|which|due|or|but|not|with|given",
        because="because|since",
        is_answer="(?:is|are|was|would be|must be|seems|appears to be|remains|stands out as)(?: "
                  r"\w{3,12}){0,1} (?:the |our |my )?(?:most |single )?(?:(?:correct|right|best|"
                  "likely|appropriate|accurate|suitable|final)(?: (?:answer|choice|option|diagnosis|"
                  r"treatment|response|one|step)|(?= ?(?:[.,;\n]|$)))|answers?(?![a-z]))|best "
                  "(?:explains|fits|matches|describes|accounts for)",
        right_link="(?:is|are)(?: also| indeed)? (?:a |an |the )?",
        right="correct|true|right|yes",
        wrong_link="(?:is|are|was|were|would be)?(?: ?(?:also|too|clearly))?",
        wrong="(?:is|are|was|were|would be) (?:also |too |clearly )?not|isn't|aren't|not (?:correct|"
              r"right|true)|in?correct\w{0,3}|wrong|false|ruled out|excluded",
        name_before="vitamins?|hepatitis|group|types?|factor|class|stage|grade|protein|virus|"
                    "child-pugh",
        named="cells?|lymphocytes?|reactive|peptides?|dimers?|virus|peptido",
        item_prefix="options?",
        line_prefix="options?|both|either",
        bare_tail="(?:and)? ?not [A-ZА-Я]",
        question="Question|Q",
        avoid="contra-?indica|avoid|wrong|incorrect",
        stated=("The correct answer is {}.", "I would choose {}.", "{} is the best choice."),
        denied=("{} is wrong.", "It is not {}."),
    ),
    split_words=split_spaced, official_words=nltk_words,
)
