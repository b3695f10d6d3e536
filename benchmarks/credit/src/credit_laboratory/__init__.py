"""The credit laboratory: controlled tasks on which the shipped credit assigners are compared.

What is measured is what ships: `batch.py` lays an episode's arrays out as `Decisions`, the columns that the
shipped methods compute on, and `methods.py` calls those methods. Only reading messages into columns is left out.
"""
