#include "text_stream.h"

#include <gtest/gtest.h>

#include "utf8.h"

namespace pagemill::engine {
namespace {

TEST(TextStream, WholeCharactersOnly) {
  TextStream stream({});
  EXPECT_EQ(stream.add("a\xE2\x82"), "a");
  EXPECT_EQ(stream.add("\xAC."), "€.");
  EXPECT_EQ(stream.add("\xF0\x9F"), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
}

TEST(TextStream, BytesThatAreNotUtf8) {
  TextStream stream({});
  EXPECT_EQ(stream.add("a\xFF\xC0z"), "a\uFFFD\uFFFDz");
}

TEST(TextStream, StopAcrossTokens) {
  TextStream stream({"END", "\n\n"});
  EXPECT_EQ(stream.add("one\n"), "one");
  EXPECT_EQ(stream.add("twoE"), "\ntwo");
  EXPECT_EQ(stream.add("NE"), "EN");
  EXPECT_FALSE(stream.stopped());
  EXPECT_EQ(stream.add("ND and more"), "");
  EXPECT_TRUE(stream.stopped());
}

TEST(TextStream, WhatMightHaveBeenAStopComesInTheEnd) {
  TextStream stream({"stop"});
  EXPECT_EQ(stream.add("a sto"), "a ");
  EXPECT_EQ(stream.finish(), "sto");
}

TEST(Utf8, FindsTheFirstWrongByte) {
  EXPECT_EQ(first_invalid_utf8("grüße €\U0001F600"), std::nullopt);
  EXPECT_EQ(first_invalid_utf8("ab\xC3"), 2u);
  EXPECT_EQ(first_invalid_utf8("\xC0\xAF"), 0u);           // overlong
  EXPECT_EQ(first_invalid_utf8("a\xED\xA0\x80"), 1u);      // a surrogate
  EXPECT_EQ(first_invalid_utf8("a\xF4\x90\x80\x80"), 1u);  // past U+10FFFF
}

}  // namespace
}  // namespace pagemill::engine
