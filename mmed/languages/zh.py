"""Chinese: the simplified spelling first, the traditional one (or the usual word in Taiwan) after a slash."""
import functools
import logging
import warnings

from mmed.languages import AnswerWords, Language, split_characters, words
from mmed.utils.errors import require_extra


@functools.cache
def _jieba():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba imports pkg_resources, which warns
        jieba = require_extra("jieba", "words")
    jieba.setLogLevel(logging.WARNING)
    jieba.initialize()
    return jieba


def jieba_words(text: str) -> list[str]:
    """MMedLM: the official scores cut Chinese with jieba."""
    return _jieba().lcut(text)


LANGUAGE = Language(
    code="zh", name="Chinese", native_name="中文", spaced=False, ocr_code="chi_sim",
    medical_words=words("""
    患者/病患, 病人, 临床/臨床, 诊断/診斷, 预后/預後, 症状/症狀, 综合征/症候群, 疾病, 病因, 发病, 病变/病變,
    病史, 病理, 病情, 并发症/併發症, 医院/醫院, 医生/醫生, 医师/醫師, 护理/護理, 住院, 手术/手術, 外科,
    内科/內科, 治疗/治療, 疗效/療效, 疗法/療法, 体征/體徵, 死亡率, 流行病学, 急性, 慢性, 先天性,
    遗传性/遺傳性, 复发/復發, 发热/發熱, 发烧/發燒, 咳嗽, 呼吸困难/呼吸困難, 头痛/頭痛, 腹痛, 腹泻/腹瀉,
    恶心/噁心, 呕吐, 水肿/水腫, 出血, 贫血/貧血, 炎症/發炎, 感染, 疼痛, 坏死/壞死, 休克, 昏迷, 癌症, 肺癌,
    乳腺癌, 肿瘤/腫瘤, 恶性/惡性, 良性, 淋巴瘤, 白血病, 高血压/高血壓, 血压/血壓, 心脏病/心臟病, 冠心病, 心肌,
    心律失常/心律不整, 心力衰竭/心臟衰竭, 动脉/動脈, 静脉/靜脈, 梗死, 缺血, 糖尿病, 血糖, 胰岛素/胰島素, 肥胖,
    甲状腺/甲狀腺, 激素, 哮喘, 肺炎, 支气管/支氣管, 流感, 肝炎, 肝硬化, 溃疡/潰瘍, 胰腺/胰臟, 结肠/結腸,
    直肠/直腸, 关节炎/關節炎, 骨折, 皮疹, 皮肤/皮膚, 癫痫/癲癇, 痴呆/失智, 抑郁/抑鬱, 焦虑/焦慮, 精神病,
    精神分裂, 脑膜炎/腦膜炎, 败血症/敗血症, 艾滋病/愛滋病, 疟疾/瘧疾, 病毒, 细菌/細菌, 真菌, 寄生虫/寄生蟲,
    病原体/病原體, 传染病/傳染病, 肾脏/腎臟, 肾功能/腎功能, 尿液, 泌尿, 膀胱, 肝脏/肝臟, 肺部, 胃肠/腸胃,
    肠道/腸道, 消化道, 腹部, 胸腔, 胸部, 心脏/心臟, 心血管, 血管, 血液, 脑部/腦部, 脊髓, 神经/神經, 肌肉,
    淋巴, 子宫, 妊娠, 怀孕, 分娩, 胎儿/胎兒, 新生儿/新生兒, 心电图/心電圖, 切除, 麻醉, 化疗/化療, 疫苗,
    接种/接種, 免疫, 抗生素, 药物/藥物, 药理/藥理, 剂量/劑量, 用药/用藥, 口服, 注射, 静脉注射/靜脈注射, 服用,
    副作用, 不良反应/不良反應, 毒性, 中毒, 中医/中醫, 医学/醫學, 血清, 血浆/血漿, 红细胞/紅血球,
    白细胞/白血球, 血小板, 胆固醇, 抗体/抗體, 抗原, 细胞/細胞, 蛋白质/蛋白質, 蛋白, 受体/受體, 基因,
    突变/突變, 染色体/染色體, dna, 组织学/組織學, 器官, 代谢/代謝, 分泌, 功能障碍/功能障礙, 患病, 解剖,
    抑制剂/抑制劑, 拮抗剂/拮抗劑, 激动剂/激動劑, 抗抑郁/抗抑鬱, 血清素, 过敏/過敏, 韧带/韌帶, 骨骼, 处方/處方,
    医疗/醫療, 气管/氣管, 酵素, 药品/藥品, 药剂/藥劑, 健康, 肌腱, 卫生/衛生, 流产/流產, 医护/醫護, 外伤/外傷
    """),
    min_hits=5, min_density=0.0525, official_min_hits=5, official_min_density=0.05,
    medical_sentence="患者因发热、咳嗽和呼吸困难入院，胸部影像学检查提示肺炎，给予静脉注射抗生素治疗。",
    ordinary_sentence="开往海边的火车九点出发，我们会在一个小村庄里吃午饭。",
    disclaimer="这是一个研究用模型，其回答不是医疗建议；请咨询医生。",
    answers=AnswerWords(
        answer="答案, 答, 结论, 正答, 选项, 選項, 项, 項, 两项, 三项, 四项, 五项, 回答, 诊断, 診斷, 治疗, "
               "治療, 处理, 處理, 病因, 原因, 检查, 檢查, 药物, 藥物, 措施, 病原体, 致病菌, 机制, 并发症, "
               "方法, 方案",
        is_="是, 为, 為, 有, 应为, 應為, 应是, 而是, 就是, 包括, 都是, 都, 均, 即",
        choose="选, 選, 选择, 選擇, 考虑, 提示, 应选, 應選, 应该是, 应该为, 更正, 其实, 其實, 倾向于, 只剩, "
               "剩下, 排除法, 因此, 所以, 故, 认为, 觉得, 可能",
        correct="正确, 正確, 对的, 最佳, 最为, 最符合, 符合, 合适, 合適, 最合适, 更合适, 适当, 恰当, "
                "更安全, 最安全",
        wrong="错误, 錯誤, 错, 錯, 不正确, 不正確, 不对, 不符, 不合适, 禁忌, 禁用, 避免, 可以排除, 可排除",
        not_="不是, 并非, 並非, 而非, 而不是, 不选, 不選, 不应选, 不能选, 不能, 不可, 不宜, 不应, 禁止, "
             "误选, 排除",
        because_if="因为, 因為, 由于, 因 / 如果, 若, 假如, 假设, 有人认为",
        and_or="和, 与, 與, 及, 以及 / 或, 或者", question="问题, 問題",
        stated=("正确答案是{}。", "应选{}。", "{}项是正确答案。"),
        denied=("{}不正确。", "不是{}。"),
    ),
    split_words=split_characters, official_words=jieba_words, official_package="jieba",
    language_id=("zh", "wuu", "yue"),  # its encyclopedias are often taken for Wu
)
