"""Thyroid-nodule classification from ultrasound: the library behind the numbered notebooks.

Data flows one way: frames -> manifest -> crops -> checkpoint -> classifier -> predictions.csv ->
metrics.json -> report. Each arrow is a file that a person can open.
"""

__version__ = "0.1.0"

LESION_TYPES = {
    "nodular_goiter": ("nodular goiter", "结节性甲状腺肿"),
    "follicular_neoplasm": ("follicular neoplasm", "甲状腺滤泡状肿瘤"),
    "papillary_carcinoma": ("papillary carcinoma", "甲状腺乳头状癌"),
    "medullary_carcinoma": ("medullary carcinoma", "甲状腺髓样癌"),
}
"""The four lesion types of claim C1: key -> (English, Chinese), in the order of the network's outputs."""
