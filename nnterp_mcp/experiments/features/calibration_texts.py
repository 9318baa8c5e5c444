"""Texts of several kinds on which dictionaries are checked: prose, dialogue, instructions, code, numbers."""

from __future__ import annotations

TEXTS: tuple[str, ...] = (
    "The harbour froze in the last week of January, and for nine days nobody crossed to the island. The schoolteacher "
    "kept the stove burning and read aloud from the only book that all the children had not yet heard, a history of "
    "lighthouses. On the tenth morning a boat came through the ice with flour, letters and a doctor, who looked at the "
    "lighthouse keeper's hand, shook his head, and asked why he had waited so long. The old man said that the lamp had "
    "needed two hands, and that he had only two.",
    "Photosynthesis is the process by which plants, algae and some bacteria turn light into chemical energy. In the "
    "first stage, pigments in the chloroplast absorb light and split water, which releases oxygen and fills the cell's "
    "stores of ATP and NADPH. In the second, called the Calvin cycle, an enzyme fixes carbon dioxide from the air, and "
    "sugars are built from it. Temperature, water and the concentration of carbon dioxide limit how fast this runs.",
    "The city council voted on Tuesday, by seven to four, to close two lanes of Mercer Street to cars from May. "
    'Shopkeepers said they feared losing customers who come from the suburbs. "We were promised a study first," said '
    'Elena Duarte, who owns a hardware store there, "and we got a map with red lines on it." The mayor, who had backed '
    "the plan in her campaign last autumn, answered that traffic had fallen by 12 percent since the bridge reopened.",
    "def merge(left, right):\n    result = []\n    i = j = 0\n    while i < len(left) and j < len(right):\n        if "
    "left[i] <= right[j]:\n            result.append(left[i])\n            i += 1\n        else:\n            "
    "result.append(right[j])\n            j += 1\n    return result + left[i:] + right[j:]\n\n\nclass Account:\n    "
    "def __init__(self, owner, balance=0):\n        self.owner = owner\n        self.balance = balance\n",
    "Question: A train leaves Lyon at 14:05 and arrives in Paris at 16:02. How long does the trip take?\nAnswer: From "
    "14:05 to 16:05 there are two hours, so the trip takes three minutes less than that: 1 hour and 57 minutes.\n\n"
    "Question: If seven pencils cost 2.80 euros, what do twelve cost?\nAnswer: One pencil costs 2.80 / 7 = 0.40 euros, "
    "so twelve pencils cost 12 * 0.40 = 4.80 euros.",
    "To bake the bread, mix 500 g of flour, 10 g of salt and 350 ml of lukewarm water, in which you have dissolved a "
    "little yeast. Knead the dough for ten minutes until it no longer sticks to your hands. Cover it and let it rest "
    "for at least two hours; it should double in size. Heat the oven to 230 degrees, put a cup of water on the floor "
    "of it, and bake the loaf for thirty-five minutes. Do not cut it while it is hot.",
    '"Did you lock the door?" she asked.\n"I thought you did," he said. They looked at each other, then at the dog, '
    'who was already halfway down the stairs.\n"Well," said Anna, "somebody has to go back, and I drove all day."\n'
    "Peter sighed. He found his shoes, could not find his glasses, and went out into the rain without them, counting "
    "the lamps along the road as he had done when he was a boy: one, two, three, four, and then the dark.",
    "In 1815 Mount Tambora erupted on the island of Sumbawa. The ash darkened skies around the world, and the year "
    "that followed had no summer in Europe and in the north-east of America: snow fell in June, harvests failed, and "
    "the price of grain rose threefold. In a villa near Geneva, kept indoors by the rain, Mary Shelley began to write "
    "Frankenstein. Historians still argue over how many people died of hunger and disease in its wake.",
    "The appellant contends that the lower court erred when it excluded the testimony of Dr. Harris. We disagree. "
    "Under Rule 702, an expert may testify only if the testimony rests on sufficient facts and is the product of "
    "reliable methods. The record shows that the witness examined none of the samples and relied on a summary that the "
    "appellant's counsel had prepared. The judgment is affirmed, with costs.",
    "Dear Ms. Okafor,\n\nThank you for your note of 3 March. I am sorry that your parcel has not arrived. "
    "According to the carrier it was left with a neighbour at number 42 on Friday. If it is not there, please "
    "let me know by the end of the week, and we will either send a replacement or refund the price, as you "
    "prefer.\n\nKind regards,\nTomasz Nowak\nCustomer Service",
    "A prime number has exactly two divisors, one and itself. There are infinitely many of them; Euclid proved it as "
    "follows: take any finite list of primes, multiply them together, and add one. The result is divisible by none of "
    "the primes on the list, so it is prime itself or has a prime factor that the list lacks. The first ten primes are "
    "2, 3, 5, 7, 11, 13, 17, 19, 23 and 29. Whether there are infinitely many pairs that differ by two is not known.",
    "The team lost its third game in a row on Saturday night, 3-1, after leading at half-time. The coach blamed the "
    'pitch, the referee and, in the end, himself. "We stopped running," he said. "You cannot win at this level if you '
    'stop running." The captain, who left the field with an injured knee, will be examined on Monday. With nine games '
    "to play, they are two points above the relegation places; next week they travel to the league leaders.",
)
"""About 1,500 tokens in most vocabularies."""
